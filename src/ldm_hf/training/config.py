"""The settings of a training run, read from YAML and from the command line."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ldm_hf.errors import ConfigError
from ldm_hf.files import replacing

_AT_LEAST_ONE = (
    "steps",
    "batch_size",
    "micro_batch_size",
    "lora_rank",
    "sequences_per_chunk",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "evaluate_every",
    "evaluate_episodes",
    "num_experts",
    "gradient_batches",
)
_AT_LEAST_ZERO = ("warmup_steps", "num_workers", "weight_decay", "cache_gib", "seed")
_ABOVE_ZERO = ("learning_rate", "epsilon", "max_grad_norm")
_MAY_BE_INFINITE = ("max_grad_norm",)  # then gradients are not clipped
_LARGEST_SEED = 2**32 - 1  # of numpy's generators
TRACKERS = ("tensorboard", "wandb", "comet_ml", "mlflow", "aim", "clearml", "dvclive", "swanlab", "trackio")
"""Those that Accelerate has, by the name of the package that each needs."""
_CHOICES = {
    "log_with": ("none", "all", *TRACKERS),
    "precision": ("auto", "bf16", "fp32"),
    "save_precision": ("fp32", "fp16"),
    "sharding": ("none", "fsdp2"),
    "stage": ("backbone", "experts", "routers"),
    "grouping": ("gradient", "direction", "random"),
}


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a training run computes.

    Making one checks each setting by itself and raises ``ConfigError``; what depends on the machine is checked when a run
    starts (``preflight.py``), and what a checkpoint was made with when a run resumes from it (``resume.py``).

    Attributes:
        data: folder of datasets, as ``ldm build`` writes them, or of several such folders, ``hf://datasets/<namespace>/<name>``,
            or a list of these.
        output: folder for checkpoints, logs and, at the end, the model in ``output/model``.
        model: name of a preset, or a model folder or Hub name to continue from.
        model_overrides: fields of ``LDMConfig`` that differ from the preset.
        lora_rank: rank of the adapters that are trained instead of the weights, in the backbone's linear layers (LoRA, which
            needs peft); by default the weights are.
        environments: ids to train on; by default all under ``data`` whose reference has no flag.
        weights: how often environments are drawn: ``uniform``, ``size`` (by transitions), or weights by id.
        context_length: transitions of a training sequence; by default the model's.
        sequences_per_chunk: sequences that are read from a chunk of data at a time; 4 of the paper's length use it whole,
            which saves reading where the data do not fit into memory.
        stream: whether data of the Hub are read over the network each time, instead of from files in its cache.
        steps: optimizer steps.
        batch_size: sequences of an optimizer step, over all processes.
        micro_batch_size: sequences of a forward pass on one device, which decides how much memory it takes; by default the
            process's whole share of ``batch_size``. Gradients of several passes add up to those of one.
        learning_rate, betas, epsilon: of AdamW (paper section 4.4; constant by default).
        weight_decay: of AdamW, for matrices only.
        warmup_steps: steps of linear warm-up.
        decay_fraction: share of the steps, at the end, in which the learning rate falls linearly to zero.
        max_grad_norm: gradients are clipped to this norm; with infinity (``.inf``) they are not.
        precision: ``auto`` is bf16 on accelerators that have it and float32 elsewhere; or ``bf16``, ``fp32``.
        save_precision: of the numbers in the file of the finished model, which is loaded in float32 all the same: ``fp16``
            halves it. Checkpoints are always whole.
        sharding: ``none`` keeps the whole model on every device (DDP); ``fsdp2`` shares weights, gradients and optimizer
            out over all devices. Both compute the same, and continue each other's checkpoints.
        compile: whether the layers of the backbone are compiled.
        gradient_checkpointing: whether activations inside layers are computed again for the backward pass, to save memory.
        seed: of the weights and of the order of the data.
        num_workers: loader processes of each training process; any number gives the same batches.
        cache_gib: decoded chunks that each loader process keeps, in GiB.
        log_every, checkpoint_every: in steps.
        keep_checkpoints: how many checkpoints are kept.
        evaluate_every: steps between two rollouts of the model in training; by default there are none.
        evaluate_environments: ids to roll out in; by default those trained on.
        evaluate_episodes: episodes in each of them.
        log_with: an Accelerate tracker, which must be installed: ``tensorboard``, ``wandb``, ..., ``all`` that are, or
            ``none``.
        stage: what is trained (docs/experts.md): ``backbone`` all that the model has; ``experts`` attaches experts to
            ``model`` and trains each on its group of environments; ``routers`` only those of ``model``, on all of them.
        num_experts: experts that the stage ``experts`` attaches.
        grouping: how it divides the environments among them: by ``gradient``, by its ``direction`` alone, or at ``random``.
        gradient_batches: batches over which the gradient of an environment is averaged for that.
    """

    data: str | list[str]
    output: str
    model: str = "nano"
    model_overrides: dict[str, Any] = field(default_factory=dict)
    lora_rank: int | None = None
    environments: list[str] | None = None
    weights: str | dict[str, float] = "uniform"
    context_length: int | None = None
    sequences_per_chunk: int = 1
    stream: bool = False
    steps: int = 1000
    batch_size: int = 16
    micro_batch_size: int | None = None
    learning_rate: float = 2.5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    warmup_steps: int = 0
    decay_fraction: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "auto"
    save_precision: str = "fp32"
    sharding: str = "none"
    compile: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0
    num_workers: int = 0
    cache_gib: float = 0.5
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    evaluate_every: int | None = None
    evaluate_environments: list[str] | None = None
    evaluate_episodes: int = 2
    log_with: str = "tensorboard"
    stage: str = "backbone"
    num_experts: int | None = None
    grouping: str = "gradient"
    gradient_batches: int = 10

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(type(self)).items():
            object.__setattr__(self, name, _typed(name, getattr(self, name), kind))
        self._check_numbers()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                wanted = f"{', '.join(choices[:-1])} or {choices[-1]}"
                raise ConfigError(f"{name} must be {wanted}, got {getattr(self, name)!r}")
        for name in ("data", "output", "model", "environments", "evaluate_environments", "weights"):
            value = getattr(self, name)
            if value is not None and (not value or (isinstance(value, list) and "" in value)):
                raise ConfigError(f"{name} must not be empty, got {value!r}")
        if isinstance(self.weights, str) and self.weights not in ("uniform", "size"):
            raise ConfigError(f"weights must be uniform, size or a number for each id, got {self.weights!r}")
        self._check_stage()

    def _check_numbers(self) -> None:
        for name, kind in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            if kind is float and (math.isnan(value) or (math.isinf(value) and name not in _MAY_BE_INFINITE)):
                raise ConfigError(f"{name} must be a finite number, got {value}")
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        for name in _AT_LEAST_ZERO:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in _ABOVE_ZERO:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be greater than 0, got {getattr(self, name)}")
        if self.seed > _LARGEST_SEED:
            raise ConfigError(f"seed must be at most {_LARGEST_SEED}, got {self.seed}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas must be from 0 to below 1, got {list(self.betas)}")
        if not 0 <= self.decay_fraction <= 1:
            raise ConfigError(f"decay_fraction must be from 0 to 1, got {self.decay_fraction}")
        if self.context_length is not None and self.context_length < 2:
            raise ConfigError(f"context_length must be at least 2, got {self.context_length}")
        if not isinstance(self.weights, str):
            for environment, weight in self.weights.items():
                if not 0 < weight < math.inf:
                    raise ConfigError(f"weights must be positive, got {weight} for {environment}")

    def _check_stage(self) -> None:
        if self.stage == "backbone":
            return
        if self.lora_rank is not None:
            raise ConfigError(
                f"lora_rank is for the stage backbone: the stage {self.stage} chooses itself what is trained"
            )
        if Path(self.model).resolve() == (Path(self.output) / "model").resolve():
            raise ConfigError(
                f"stage {self.stage} would replace {self.model}, which it starts from; set another output"
            )

    def pieces(self, num_processes: int) -> int:
        """Forward passes of an optimizer step on each of so many processes.

        Raises:
            ConfigError: the batch cannot be shared out like this.
        """
        shares = num_processes * (self.micro_batch_size or 1)
        if self.batch_size % shares:
            raise ConfigError(
                f"batch_size {self.batch_size} cannot be shared by {num_processes} processes with micro_batch_size "
                f"{self.micro_batch_size or 'unset'}: it must be a multiple of {shares}"
            )
        return self.batch_size // shares if self.micro_batch_size else 1

    @classmethod
    def load(cls, path: Path | None, overrides: Sequence[str] = ()) -> "TrainingConfig":
        """Read a YAML file and apply ``name=value`` settings, values in YAML (``environments=[a, b]``).

        Raises:
            ConfigError: the file cannot be read, a name is unknown (with a suggestion), or a value has the wrong type.
        """
        values = {} if path is None else _read_mapping(path)
        values |= read_settings(overrides)
        return cls.from_mapping(values, where="the command line" if path is None else str(path))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "the settings") -> "TrainingConfig":
        """Check names and types of settings and build the configuration; raises ``ConfigError``."""
        fields = typing.get_type_hints(cls)
        for name in values:
            if name not in fields:
                near = difflib.get_close_matches(str(name), fields, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(fields)}"
                raise ConfigError(f"{where} sets {name!r}, which is not a setting{hint}")
        missing = [name for name in ("data", "output") if name not in values]
        if missing:
            raise ConfigError(f"{where} must set {' and '.join(missing)}")
        return cls(**values)

    def save(self, path: Path) -> None:
        """Write the settings as YAML that ``load`` reads."""
        with replacing(path) as temporary:
            temporary.write_text(yaml.safe_dump(self.as_mapping(), sort_keys=False))

    def as_mapping(self) -> dict[str, Any]:
        """The settings as JSON and YAML hold them."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` settings, values in YAML; ``ConfigError`` if one is none."""
    values = {}
    for setting in texts:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"a setting reads name=value, got {setting!r}")
        try:
            values[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{name.strip()} cannot be read as YAML, got {text!r}: {reason}") from error
    return values


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as YAML settings: {reason}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold settings as 'name: value', got {type(values).__name__}")
    return values


def _typed(name: str, value: Any, expected: Any) -> Any:
    """The value as the field's type, where nothing is lost by it: 1 for 1.0, "2.5e-4" (which YAML reads as text)."""
    options = typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)
    if isinstance(value, Path):
        value = str(value)
    for option in options:
        plain, parts = typing.get_origin(option) or option, typing.get_args(option)
        if plain is float and isinstance(value, int | str) and not isinstance(value, bool):
            try:
                return float(value)
            except (ValueError, OverflowError):
                continue
        if plain is tuple and isinstance(value, list | tuple) and len(value) == len(parts):
            return tuple(_typed(name, part, kind) for part, kind in zip(value, parts, strict=True))
        if isinstance(value, plain) and plain is not tuple and not (plain is int and isinstance(value, bool)):
            return _with_typed_parts(name, value, parts)
    wanted = " or ".join("nothing" if option is types.NoneType else _name_of(option) for option in options)
    raise ConfigError(f"{name} must be {wanted}, got {value!r}")


def _with_typed_parts(name: str, value: Any, kinds: Sequence[Any]) -> Any:
    """A list or a mapping, each of whose parts is of its type; any other value as it is."""
    if isinstance(value, list):
        return [_typed(f"each of {name}", part, kinds[0]) for part in value]
    if isinstance(value, dict):
        named = {_typed(f"each name in {name}", key, kinds[0]): part for key, part in value.items()}
        if kinds[1] is Any:
            return named
        return {key: _typed(f"{name} of {key}", part, kinds[1]) for key, part in named.items()}
    return value


def _name_of(kind: Any) -> str:
    return str(kind) if typing.get_origin(kind) else kind.__name__
