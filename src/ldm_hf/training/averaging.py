"""The average of the weights of models that were trained from the same ones (model soups, arXiv 2203.05482)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from ldm_hf.errors import CheckpointError, ConfigError
from ldm_hf.hub.model_card import Training, base_model_name
from ldm_hf.hub.pretrained import SETTINGS, load_config, load_pretrained, training_settings
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.training.checkpoint import save_model
from ldm_hf.utils.files import replacing

_MAY_DIFFER = {"environments", "previous_action_dropout", "dtype", "transformers_version", "_name_or_path", "auto_map"}


def average_models(
    models: Sequence[str], output: Path, shares: Sequence[float] | None = None, save_precision: str = "fp32"
) -> Path:
    """Write a model whose weights are the average of those of others, which is worth nothing unless they are near.

    They are near where all were trained, not for too long, from the same weights: attempts that differ in their data or
    seeds, or a model and the one that it was fine-tuned from (arXiv 2109.01903).

    Args:
        models: folders or Hub names, two or more, whose configurations agree in all but ``environments`` and
            ``previous_action_dropout``: the average's environments are those of all, the other setting the last one's.
        output: folder of the average; replaced if it is a model's. The ``training.yaml`` in it is the last model's.
        shares: of each model, above 0, divided by their sum; by default alike.
        save_precision: ``fp32``, or ``fp16`` for numbers rounded to half precision in the file.

    Returns:
        ``output``.

    Raises:
        ConfigError: there are fewer than two models, configurations differ, a share cannot be used, or something else is
            in the way.
        CheckpointError: a model cannot be read.
    """
    portions = _portions(models, shares)
    if save_precision not in ("fp32", "fp16"):
        raise ConfigError(f"save_precision must be fp32 or fp16, got {save_precision!r}")
    _check_replaceable(output)
    loaded = [load_pretrained(model) for model in models]
    config = _common_config(models, loaded)
    precision = torch.float16 if save_precision == "fp16" else torch.float32
    states = [model.state_dict() for model, _ in loaded]
    weights = {
        name: sum(portion * state[name].double() for portion, state in zip(portions, states, strict=True)).to(precision)
        for name in states[0]
    }
    about = Training([base_model_name(model) for model in models])
    settings = training_settings(Path(models[-1]))
    with replacing(output) as temporary:
        save_model(config, weights, loaded[0][1], temporary, about, load_as=output)
        if settings:
            (temporary / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return output


def _check_replaceable(output: Path) -> None:
    """Raise if something is there that is neither a model's folder nor an empty one."""
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists():
        try:
            load_config(output)
        except CheckpointError as error:
            raise ConfigError(f"{output} is in the way and holds no model: choose another output folder") from error


def _portions(models: Sequence[str], shares: Sequence[float] | None) -> list[float]:
    """Shares that sum to 1."""
    if len(models) < 2:
        raise ConfigError(f"an average is of two models or more, got {len(models)}")
    given = list(shares) if shares else [1.0] * len(models)
    if len(given) != len(models):
        raise ConfigError(f"there are {len(models)} models and {len(given)} shares: give one of each model, or none")
    if not all(0 < share < math.inf for share in given):
        raise ConfigError(f"shares must be finite numbers above 0, got {', '.join(f'{share:g}' for share in given)}")
    return [share / sum(given) for share in given]


def _common_config(models: Sequence[str], loaded: Sequence[tuple[LDMModel, LDMProcessor]]) -> LDMConfig:
    """The average's configuration; ``ConfigError`` where the models' disagree."""
    configs = [model.config for model, _ in loaded]
    first: dict[str, Any] = configs[0].to_dict()
    for name, config in zip(models[1:], configs[1:], strict=True):
        other = config.to_dict()
        differing = sorted(key for key in first.keys() - _MAY_DIFFER if first[key] != other.get(key))
        if differing:
            key = differing[0]
            raise ConfigError(
                f"{key} of {models[0]} is {first[key]!r} and of {name} {other.get(key)!r}: only models of one configuration "
                "can be averaged"
            )
    known = sorted({each for config in configs for each in config.environments or []})
    configs[-1].environments = known or None
    return configs[-1]
