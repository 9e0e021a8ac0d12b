"""What a checkpoint was made with, and with which settings a run may continue from it.

A run that continues must compute what it would have computed uninterrupted. Settings that say what the weights mean, or
which sequence comes next, are *bound*: another value is refused. The others (learning rate, number of steps, ...) may
change, and every checkpoint keeps the settings of all its steps. ``training.json`` of a checkpoint holds, beside the step,

- ``bound``: the bound settings, and a fingerprint of the data of each environment;
- ``history``: all settings, one entry for each change of them: ``from_step``, ``num_processes``, ``settings``.

Checkpoints of before hold neither: of them, the model's configuration alone is compared.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.errors import ConfigError
from ldm_hf.modeling import LDMConfig
from ldm_hf.training.checkpoint import on_main, read_record
from ldm_hf.training.config import TrainingConfig, renamed

_BOUND = (
    *("stage", "model", "reinitialize", "lora_rank", "seed", "train_batch_size", "sequences_per_chunk", "weights"),
    *("augmentation", "optim", "adam_beta1", "adam_beta2"),
)
# What transformers writes of itself, and what training writes of its data, which has a fingerprint.
_UNBOUND_FIELDS = {"architectures", "auto_map", "dtype", "transformers_version", "environments", "expert_environments"}
_NAMED = 5


def bound_settings(
    config: TrainingConfig,
    datasets: Sequence[EnvironmentDataset],
    context_length: int,
    held_back: Sequence[EnvironmentDataset] = (),
) -> dict[str, Any]:
    """What may not change while a run continues, as JSON holds it; ``held_back`` are the datasets of validation."""
    settings: dict[str, Any] = {name: value for name, value in config.as_mapping().items() if name in _BOUND}
    if held_back:  # or the best so far would be of other data, or by another measure
        settings["validation_data"] = "-".join(map(_fingerprint, held_back))
        settings["metric_for_best_model"] = config.metric_for_best_model
    data = {dataset.environment: _fingerprint(dataset) for dataset in datasets}
    return json.loads(json.dumps({**settings, "context_length": context_length, "data": data}))


def made_with(
    accelerator: Accelerator, config: TrainingConfig, bound: Mapping[str, Any], start: int, before: Sequence[Any] = ()
) -> dict[str, Any]:
    """What the checkpoints of a run that starts or continues after step ``start`` keep of how they were made."""
    now = {"from_step": start, "num_processes": accelerator.num_processes, "settings": config.as_mapping()}
    now = json.loads(json.dumps(now))
    history = [entry for entry in before if entry["from_step"] < start]  # of no step: it was stopped before the first
    if not history or any(history[-1][name] != now[name] for name in ("num_processes", "settings")):
        history.append(now)
    return {"bound": dict(bound), "history": history}


def check_resume(
    accelerator: Accelerator, checkpoint: Path, bound: Mapping[str, Any], model: LDMConfig
) -> tuple[list[Any], list[str]]:
    """See that a run with these settings may continue from a checkpoint; every process calls this.

    Args:
        accelerator: of the run.
        checkpoint: its folder.
        bound: of the settings that it would continue with.
        model: configuration of their model.

    Returns:
        The history of the checkpoint, and the environments that its weights were trained on.

    Raises:
        ConfigError: it may not; the message names each setting, what it was and what it is.
        CheckpointError: the checkpoint cannot be read.
    """

    def read() -> tuple[list[str], list[Any], list[str]]:
        record, fields = read_record(checkpoint), LDMConfig.from_json_file(checkpoint / "config.json").to_dict()
        found = renamed(record.get("bound", {}))
        differing = [
            f"{name} {_short(found[name])} and is {_short(bound[name])}"
            for name in bound
            if name != "data" and name in found and found[name] != bound[name]
        ]
        differing += _differing_data(found.get("data", bound["data"]), bound["data"])
        own = json.loads(json.dumps(model.to_dict()))
        differing += [
            f"{name} of the model {_short(value)} and is {_short(own.get(name))}"
            for name, value in json.loads(json.dumps(fields)).items()
            if name not in _UNBOUND_FIELDS and not name.startswith("_") and value != own.get(name)
        ]
        return differing, record.get("history", []), fields.get("environments") or []

    found = on_main(accelerator, read, f"{checkpoint} cannot be continued from: {{}}; delete it to use an older one")
    ((differing, history, environments),) = broadcast_object_list([found])
    if differing:
        raise ConfigError(
            f"{checkpoint} was made with other settings: it had {'; '.join(differing)}. Set back what differs to continue, "
            "or set another output"
        )
    return history, environments


def _differing_data(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    gone, added = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    changed = [
        environment for environment in found if found[environment] != wanted.get(environment, found[environment])
    ]
    parts = []
    if gone or added:
        changes = [f"without {_listed(gone)}"] * bool(gone) + [f"with {_listed(added)}"] * bool(added)
        parts.append(f"{len(found)} environments and is to have {len(wanted)}, {' and '.join(changes)}")
    if changed:
        parts.append(f"other data of {_listed(changed)}")
    return parts


def _listed(names: Sequence[str]) -> str:
    left = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {left} more" if left > 0 else "")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fingerprint(dataset: EnvironmentDataset) -> str:
    """Of what decides the order and the content of an environment's sequences, wherever its files lie."""
    digest = hashlib.sha256(dataset.chunk_lengths.astype("<i8").tobytes())
    for info in dataset.runs:
        named = [info.environment, info.run, info.observation_space, info.action_space, info.num_transitions]
        named += [info.algorithm, info.hyperparameters, info.seed, info.first10, info.last10]
        digest.update(json.dumps(named, sort_keys=True).encode())
    return digest.hexdigest()[:16]
