"""Evaluates a saved model on environments that have a reference, one result file each, and writes the report."""

import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModel, AutoProcessor
from transformers.utils.logging import disable_progress_bar

import ldm_hf
from ldm_hf.dataset_builder.reader import EnvironmentDataset
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import CheckpointError
from ldm_hf.evaluation.report import EnvironmentResult, Report, plot_threshold_curve, render_model_card
from ldm_hf.evaluation.rollout import EPISODES, EVALUATION_SEED, ROLLOUTS, evaluate_environment
from ldm_hf.files import replacing

Progress = Callable[[str, int, int], None]
"""Called with an environment, its episodes that ended, and all of its episodes."""

_PACKAGES = ("gymnasium", "numpy", "torch", "transformers")


def evaluate(
    model_folder: Path,
    references: Sequence[EnvironmentDataset],
    output: Path,
    *,
    episodes: int = EPISODES,
    rollouts: int = ROLLOUTS,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = lambda environment, done, total: None,
) -> Report:
    """Evaluate a model folder and write ``report.json``, ``threshold_curve.png``, ``README.md`` (the card) to ``output``.

    An environment whose result is in ``output/environments`` already, from the same weights and protocol, is not repeated.

    Args:
        model_folder: a folder that ``AutoModel.from_pretrained`` reads.
        references: datasets of the environments, which hold the scores of the reference runs.
        output: folder of the report.
        episodes, rollouts, seed: of the protocol, see ``evaluate_environment``.
        device: torch device of the model.
        progress: told of every episode.

    Raises:
        CheckpointError: the folder holds no Large Decision Model.
        EnvironmentFailure: an environment broke.
    """
    disable_progress_bar()  # transformers' own, for weights: they would break up ours
    model, processor = load_pretrained(model_folder)
    model.to(device)  # type: ignore[arg-type]
    protocol = {"episodes": episodes, "rollouts": rollouts, "seed": EVALUATION_SEED + 1000 * seed}
    weights = _weights_hash(model_folder)
    results = []
    for reference in references:
        info = reference.info
        key = {"weights": weights, "protocol": protocol, "reference": [info.first10, info.last10]}
        parsed = EnvironmentId.parse(info.environment)
        path = output / "environments" / parsed.library / f"{parsed.config_name}.json"
        result = _finished(path, key)
        if result is None:
            rollout = evaluate_environment(
                model,
                processor,
                info.environment,
                episodes=episodes,
                rollouts=rollouts,
                seed=seed,
                progress=functools.partial(progress, info.environment),
            )
            scores = (info.first10, info.last10, info.deterministic_return)
            result = EnvironmentResult.of(info.environment, rollout.returns, *scores)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps({"key": key, "result": vars(result)}))
        progress(info.environment, episodes * rollouts, episodes * rollouts)
        results.append(result)
    report = Report(
        sorted(results, key=lambda result: result.id),
        protocol,
        {
            "parameters": model.num_parameters(),
            "context_length": model.config.max_position_embeddings,
            "weights_sha256": weights,
        },
        _training_settings(model_folder),
        {"python": platform.python_version(), "ldm_hf": ldm_hf.__version__, **_versions()},
    )
    report.save(output / "report.json")
    plot_threshold_curve(report, output / "threshold_curve.png")
    with replacing(output / "README.md") as temporary:
        temporary.write_text(render_model_card(report, model_folder.resolve().parent.name))
    return report


def load_pretrained(folder: str | Path) -> tuple[ldm_hf.LDMModel, ldm_hf.LDMProcessor]:
    """Load a model and its processor through the Auto classes, from a folder or the Hub.

    Raises:
        CheckpointError: there is no such folder or repository, or it holds another type of model, or damaged files.
    """
    load_config(folder)
    try:
        model: ldm_hf.LDMModel = AutoModel.from_pretrained(folder, dtype=torch.float32)
        return model, AutoProcessor.from_pretrained(folder)
    except Exception as error:  # safetensors and strict configurations raise errors of their own
        raise CheckpointError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error


def load_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a model, of a folder or a Hub name.

    Raises:
        CheckpointError: there is no such folder or repository, or it holds another type of model.
    """
    try:
        is_name = not Path(folder).is_dir() and str(folder).count("/") == 1
        path = hf_hub_download(str(folder), "config.json") if is_name else Path(folder) / "config.json"
        config = json.loads(Path(path).read_text())
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise CheckpointError(f"{folder} holds no model: its config.json is missing or no JSON") from error
    if config.get("model_type") != "ldm":
        raise CheckpointError(f"{folder} holds a model of type {config.get('model_type')!r}; it must be 'ldm'")
    return config


def _finished(path: Path, key: dict) -> EnvironmentResult | None:
    try:
        stored = json.loads(path.read_text())
        return EnvironmentResult(**stored["result"]) if stored["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # Not there, or not ours: it is evaluated again and replaced.


def _weights_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _training_settings(folder: Path) -> dict:
    path = Path(folder).parent / "training.yaml"
    settings = yaml.safe_load(path.read_text()) if path.is_file() else {}
    # Folders of the machine that trained it help nobody.
    return {name: value for name, value in settings.items() if name not in ("data", "output")}


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}
