"""The settings of a training run: one typed class, read from YAML and from the command line.

Settings that mean what an argument of transformers' ``TrainingArguments`` means have its name. Pydantic checks types, ranges
and choices.
"""

import dataclasses
import difflib
import functools
import math
import typing
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from typing_extensions import Doc, Self

from ldm_hf.errors import ConfigError
from ldm_hf.utils.files import replacing

TRACKERS = ("tensorboard", "wandb", "comet_ml", "mlflow", "aim", "clearml", "dvclive", "swanlab", "trackio")
"""Those that Accelerate has, by the name of the package that each needs."""

RENAMED = {
    "output": "output_dir",
    "steps": "max_steps",
    "batch_size": "train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "epsilon": "adam_epsilon",
    "compile": "torch_compile",
    "num_workers": "dataloader_num_workers",
    "log_every": "logging_steps",
    "checkpoint_every": "save_steps",
    "keep_checkpoints": "save_total_limit",
    "evaluate_every": "eval_steps",
    "evaluate_environments": "eval_environments",
    "evaluate_episodes": "eval_episodes",
    "log_with": "report_to",
}
"""Settings by the names that they had before 0.1; read with a warning, until 0.3."""

MOVED: dict[str, Any] = {"stage": "backbone", "num_experts": None, "grouping": "gradient", "gradient_batches": 10}
"""Settings of ``experiments.m3dt`` that were here, with what they were by default."""

_Name = Annotated[str, MinLen(1)]
_Names = Annotated[list[_Name], MinLen(1)]
_Tracker = Literal[
    "none", "all", "tensorboard", "wandb", "comet_ml", "mlflow", "aim", "clearml", "dvclive", "swanlab", "trackio"
]
_NOTHING = object()
_LARGEST_SEED = 2**32 - 1  # of numpy's generators


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a training run computes.

    Making one checks each setting by itself and raises ``ConfigError``; what depends on the machine is checked when a run
    starts (``preflight.py``), and what a checkpoint was made with when a run resumes from it (``resume.py``). ``ldm train
    --help`` lists the settings with what they mean.
    """

    data: Annotated[
        _Name | _Names,
        Doc("Folder of datasets, as `ldm build` writes them, a folder of such folders, hf://datasets/NAME, or a list."),
    ]
    output_dir: Annotated[
        _Name, Doc("Folder for checkpoints, logs and, at the end, the model in its subfolder `model`.")
    ]
    model: Annotated[
        _Name, Doc("Name of a preset, or a model folder or Hub name whose weights are trained further.")
    ] = "nano"
    model_overrides: Annotated[dict[str, Any], Doc("Fields of LDMConfig that differ from the preset.")] = field(
        default_factory=dict
    )
    reinitialize: Annotated[
        list[Literal["embedding", "backbone", "action_head"]],
        Doc("Parts of a trained model whose weights start at random again."),
    ] = field(default_factory=list)
    lora_rank: Annotated[
        Annotated[int, Ge(1)] | None,
        Doc("Rank of LoRA adapters in the backbone, which are then trained instead of the weights."),
    ] = None
    environments: Annotated[
        _Names | None,
        Doc("Ids to train on. Default: all in `data` whose reference has no flag, or which `weights` names."),
    ] = None
    weights: Annotated[
        Literal["uniform", "size"] | dict[str, Annotated[float, Gt(0), Lt(math.inf)]],
        Doc("How often environments are sampled: uniform, size (by transitions), or a weight per id."),
    ] = "uniform"
    context_length: Annotated[
        Annotated[int, Ge(2)] | None, Doc("Transitions of a training sequence. Default: the model's.")
    ] = None
    sequences_per_chunk: Annotated[
        int, Ge(1), Doc("Sequences that are read from a chunk of data at a time; 4 of 2048 transitions use it whole.")
    ] = 1
    augmentation: Annotated[
        float,
        Ge(0),
        Le(1),
        Doc(
            "Share of training sequences whose slots, symbols, scales, images and labels are changed at random, alike."
        ),
    ] = 0.0
    previous_action_dropout: Annotated[
        Annotated[float, Ge(0), Le(1)] | None,
        Doc("Probability that a transition does not show the action before it. Default: the model's."),
    ] = None
    stream: Annotated[
        bool, Doc("Whether data of the Hub are read over the network each time, instead of from its cache.")
    ] = False
    max_steps: Annotated[int, Ge(1), Doc("Optimizer steps.")] = 1000
    train_batch_size: Annotated[int, Ge(1), Doc("Sequences of an optimizer step, over all processes.")] = 16
    per_device_train_batch_size: Annotated[
        Annotated[int, Ge(1)] | None,
        Doc(
            "Sequences of a forward pass on one device, which decides how much memory it takes; gradients are accumulated "
            "over as many passes as train_batch_size needs. Default: the process's whole share of it."
        ),
    ] = None
    optim: Annotated[
        Literal["adamw_torch_fused", "muon"],
        Doc(
            "Optimizer: AdamW for all weights, or Muon (torch 2.9) for the matrices of the layers and AdamW for the others."
        ),
    ] = "adamw_torch_fused"
    learning_rate: Annotated[
        float, Gt(0), Lt(math.inf), Doc("Of all weights (paper section 4.4); constant by default.")
    ] = 2.5e-4
    adam_beta1: Annotated[float, Ge(0), Lt(1), Doc("Decay of AdamW's first moment.")] = 0.9
    adam_beta2: Annotated[float, Ge(0), Lt(1), Doc("Decay of AdamW's second moment.")] = 0.999
    adam_epsilon: Annotated[float, Gt(0), Lt(math.inf), Doc("AdamW's epsilon.")] = 1e-8
    weight_decay: Annotated[float, Ge(0), Lt(math.inf), Doc("Of AdamW, for matrices only.")] = 0.01
    warmup_steps: Annotated[int, Ge(0), Doc("Steps of linear warm-up.")] = 0
    decay_fraction: Annotated[
        float, Ge(0), Le(1), Doc("Share of the steps, at the end, in which the learning rate falls linearly to zero.")
    ] = 0.0
    max_grad_norm: Annotated[float, Gt(0), Doc("Gradients are clipped to this norm; `.inf` does not clip.")] = 1.0
    bf16: Annotated[
        bool | None,
        Doc("Whether to compute in bfloat16 where precision allows. Default: on accelerators that have it."),
    ] = None
    save_precision: Annotated[
        Literal["fp32", "fp16"], Doc("Numbers in the file of the finished model; it is loaded in float32 all the same.")
    ] = "fp32"
    sharding: Annotated[
        Literal["none", "fsdp2"],
        Doc("none keeps the whole model on each device (DDP); fsdp2 shards weights, gradients and optimizer."),
    ] = "none"
    tf32: Annotated[
        bool | None,
        Doc("Whether products of float32 matrices are computed in TF32. Default: on accelerators that have it."),
    ] = None
    torch_compile: Annotated[
        bool | None, Doc("Whether the layers of the backbone are compiled. Default: on accelerators.")
    ] = None
    gradient_checkpointing: Annotated[
        bool | None,
        Doc(
            "Whether activations inside layers are recomputed in the backward pass. Default: where, by estimate, they "
            "would not fit in the accelerator's memory."
        ),
    ] = None
    seed: Annotated[int, Ge(0), Le(_LARGEST_SEED), Doc("Random seed of the weights and of the order of the data.")] = 0
    dataloader_num_workers: Annotated[
        int, Ge(0), Doc("Loader processes of each training process; any number gives the same batches.")
    ] = 0
    cache_gib: Annotated[
        float,
        Ge(0),
        Lt(math.inf),
        Doc("Decoded chunks that are kept for all processes of a node, in GiB of the temporary folder (TMPDIR)."),
    ] = 2.0
    logging_steps: Annotated[int, Ge(1), Doc("Steps between two entries of the log.")] = 10
    save_steps: Annotated[int, Ge(1), Doc("Steps between two checkpoints.")] = 500
    save_total_limit: Annotated[int, Ge(1), Doc("Checkpoints that are kept.")] = 2
    eval_steps: Annotated[
        Annotated[int, Ge(1)] | None, Doc("Steps between two evaluations by rollouts. Default: none.")
    ] = None
    eval_environments: Annotated[_Names | None, Doc("Ids to evaluate in. Default: those trained on.")] = None
    eval_episodes: Annotated[int, Ge(1), Doc("Episodes in each of them.")] = 2
    validation_data: Annotated[
        _Name | _Names | None,
        Doc(
            "Folder of datasets, as `data`, that are held back. The model is measured on them, and when it is finished has "
            "the best of its weights. Default: none."
        ),
    ] = None
    metric_for_best_model: Annotated[
        Literal["loss", "action_error"],
        Doc(
            "What decides on held-back data, lowest first: the loss, or how far the most likely actions are from the labels."
        ),
    ] = "loss"
    validation_steps: Annotated[int, Ge(1), Doc("Steps between two measurements on held-back data.")] = 20
    early_stopping_patience: Annotated[
        Annotated[int, Ge(1)] | None,
        Doc("Measurements on held-back data without a better one after which training ends. Default: never."),
    ] = None
    report_to: Annotated[_Tracker, Doc("Tracker, which must be installed; all that are, or none.")] = "tensorboard"

    def __post_init__(self) -> None:
        for name, adapter in _adapters(type(self)).items():  # type: ignore[arg-type] # a class is hashable
            object.__setattr__(self, name, _checked(name, getattr(self, name), adapter))

    def accumulation_steps(self, num_processes: int) -> int:
        """Forward passes of an optimizer step on each of ``num_processes`` processes.

        Raises:
            ConfigError: the batch cannot be divided among them.
        """
        at_once = self.per_device_train_batch_size
        shares = num_processes * (at_once or 1)
        if self.train_batch_size % shares:
            raise ConfigError(
                f"train_batch_size {self.train_batch_size} cannot be shared by {num_processes} processes with "
                f"per_device_train_batch_size {at_once or 'unset'}: it must be a multiple of {shares}"
            )
        return self.train_batch_size // shares if at_once else 1

    @classmethod
    def load(cls, path: Path | None, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a YAML file, and apply settings over it.

        Raises:
            ConfigError: the file cannot be read, a name is unknown (with a suggestion), or a value cannot be used.
        """
        values = {} if path is None else renamed(_read_mapping(path), str(path))
        values |= renamed(overrides or {}, "the command line")
        return cls.from_mapping(values, where="the command line" if path is None else str(path))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "the settings") -> Self:
        """Check names and values of settings and build the configuration; raises ``ConfigError``."""
        values, known = renamed(values, where), settings(cls)
        # Older versions wrote these into every file of settings.
        values = {name: value for name, value in values.items() if name in known or value != MOVED.get(name, _NOTHING)}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
                raise ConfigError(f"{where} sets {name!r}, which is not a setting{hint}")
        missing = [name for name in ("data", "output_dir") if name not in values]
        if missing:
            raise ConfigError(f"{where} must set {' and '.join(missing)}")
        return cls(**values)

    def save(self, path: Path) -> None:
        """Write the settings as YAML that ``load`` reads."""
        with replacing(path) as temporary:
            temporary.write_text(yaml.safe_dump(self.as_mapping(), sort_keys=False))

    def as_mapping(self) -> dict[str, Any]:
        """The settings as JSON and YAML hold them."""
        return dataclasses.asdict(self)


def settings(kind: type[TrainingConfig] = TrainingConfig) -> dict[str, str]:
    """What each setting means, by name."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        name: next(part.documentation for part in hint.__metadata__ if isinstance(part, Doc))
        for name, hint in hints.items()
    }


def renamed(values: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
    """Settings by their names of today; ``where`` names who is to be warned of those that are given by an older one."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        today: dict[str, Any] = {RENAMED[name]: value} if name in RENAMED else {name: value}
        if name == "betas":
            today = dict(zip(("adam_beta1", "adam_beta2"), value, strict=False)) if isinstance(value, Sequence) else {}
        elif name == "precision":
            today = {"bf16": {"auto": None, "bf16": True, "fp32": False}.get(value, value)}
        if name not in today and where is not None:
            warnings.warn(f"{where} sets {name}, which is called {', '.join(today)} now", FutureWarning, stacklevel=3)
        found |= today
    return found


def read_value(name: str, text: str) -> Any:
    """A setting's value from the command line, in YAML; ``ConfigError`` if it is not valid."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} cannot be read as YAML, got {text!r}: {' '.join(str(error).split())}") from error


@functools.cache
def _adapters(kind: type[TrainingConfig]) -> dict[str, Any]:
    from pydantic import TypeAdapter

    return {name: TypeAdapter(hint) for name, hint in typing.get_type_hints(kind, include_extras=True).items()}


def _checked(name: str, value: Any, adapter: Any) -> Any:
    """The value as its setting's type, where nothing is lost by it: 1 for 1.0, "2.5e-4" (which YAML reads as text)."""
    from pydantic import ValidationError

    try:
        # Strictly where it is a truth value, which elsewhere would count as 0 or 1.
        return adapter.validate_python(
            str(value) if isinstance(value, Path) else value, strict=isinstance(value, bool) or None
        )
    except ValidationError as error:
        # Of the alternatives of a setting, the one that came furthest.
        worst = max(
            error.errors(include_url=False), key=lambda one: (not one["type"].endswith("_type"), len(one["loc"]))
        )
        parts = [part for part in worst["loc"] if isinstance(part, int) or (isinstance(value, dict) and part in value)]
        reason = worst["msg"][0].lower() + worst["msg"][1:]
        within = "".join(f" {part!r}" for part in parts)
        raise ConfigError(f"{name}{within} cannot be used: {reason}, got {worst['input']!r}") from None


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as YAML settings: {reason}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold settings as 'name: value', got {type(values).__name__}")
    return values
