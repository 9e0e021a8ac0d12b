"""Checkpoints from which training continues bit for bit: weights, optimizer, data position, random state.

A checkpoint is a folder ``checkpoint-<step>`` that ``AutoModel.from_pretrained`` can load, plus

- ``optimizer.safetensors``: ``<parameter name>.<state name>`` tensors;
- ``training.json``: format version, step, number of processes, and the settings (``resume.py``);
- ``random.safetensors``: the random state of each process, ``<rank>.<device type>``;
- ``adapter.safetensors``, where adapters are trained: they continue from these, and the model has them merged.

Tensors are whole and keyed by name, whatever the number of processes and the sharding, so that any number of processes
with any sharding resumes from it. Only the main process reads and writes. It is written under a temporary name and
renamed, so a folder with the final name is always whole. Nothing is pickled.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ldm_hf.errors import CheckpointError
from ldm_hf.hub.model_card import CARD, EVALUATION_FILES, Training, evaluated_weights, training_card, weights_hash
from ldm_hf.modeling import LDMConfig, LDMModel
from ldm_hf.modeling.processing_ldm import LDMProcessor
from ldm_hf.training.lora import adapter_weights, is_adapted, plain_weights, save_adapter
from ldm_hf.training.optimizers import Optimizers
from ldm_hf.utils.files import publish, remove, replacing

FORMAT = 2
_PREFIX = "checkpoint-"
_ADAPTER_FILE = "adapter.safetensors"
_ON_MAIN = StateDictOptions(full_state_dict=True, cpu_offload=True)  # whole tensors, on the main process only

Result = TypeVar("Result")


def latest_checkpoint(accelerator: Accelerator, output: Path) -> Path | None:
    """The checkpoint with the highest step in a run's folder, if there is one: the same one for every process."""
    found = [max(output.glob(f"{_PREFIX}[0-9]*[0-9]"), key=_step_of, default=None)]
    return broadcast_object_list(found)[0]


def save_checkpoint(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizers: Optimizers,
    processor: LDMProcessor,
    output: Path,
    step: int,
    keep: int,
    made_with: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of ``step`` optimizer steps; every process calls this. Older ones beyond ``keep`` go.

    Raises:
        CheckpointError: it cannot be written (a full disk, say), or a weight or a state of an optimizer is not finite;
            checkpoints that were there before still are.
    """
    path = output / f"{_PREFIX}{step:08d}"
    temporary = path.with_name(f"{path.name}.partial")
    weights: dict[str, Any] = get_model_state_dict(model, options=_ON_MAIN)
    states: Any = get_optimizer_state_dict(model, optimizers, options=_ON_MAIN).get("state", {})
    random = dict(gather_object(_random_state(accelerator)))
    record = {"format": FORMAT, "step": step, "num_processes": accelerator.num_processes, **made_with}
    tensors = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}

    def write() -> None:
        _check_finite({**weights, **tensors})
        remove(temporary)
        temporary.mkdir(parents=True)
        try:
            unwrapped = accelerator.unwrap_model(model)
            save_model(unwrapped.config, plain_weights(unwrapped, weights), processor, temporary)
            if is_adapted(unwrapped):
                save_file(adapter_weights(weights), temporary / _ADAPTER_FILE)
            save_file(tensors, temporary / "optimizer.safetensors")
            save_file(random, temporary / "random.safetensors")
            (temporary / "training.json").write_text(json.dumps(record, indent=1))
            publish(temporary, path)
        finally:
            remove(temporary)
        for old in sorted(output.glob(f"{_PREFIX}[0-9]*[0-9]"), key=_step_of)[:-keep]:
            shutil.rmtree(old)

    on_main(accelerator, write, f"{path} cannot be written: {{}}; earlier checkpoints are untouched")
    return path


def load_checkpoint(accelerator: Accelerator, model: torch.nn.Module, optimizers: Optimizers, path: Path) -> int:
    """Put a checkpoint into a distributed model and its optimizers; returns the number of steps that were done.

    On another number of processes than wrote it, training continues with the same data, but with a new random state.

    Raises:
        CheckpointError: a file is missing, damaged, of another format or of another model.
    """
    unwrapped = accelerator.unwrap_model(model)
    adapted = is_adapted(unwrapped)  # What is frozen is as training found it, and there already.

    def read() -> tuple[dict[str, Any], ...]:
        record = read_record(path)
        weights = load_file(path / (_ADAPTER_FILE if adapted else "model.safetensors"))
        _check_shapes(weights, _stored(unwrapped))
        states = _by_parameter(load_file(path / "optimizer.safetensors"))
        return record, weights, states, load_file(path / "random.safetensors")

    found = on_main(accelerator, read, f"{path} cannot be continued from: {{}}; delete it to use an older one")
    record, weights, states, random = found or ({}, {}, {}, {})
    several = accelerator.num_processes > 1
    whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=several)
    for optimizer in optimizers:  # one by one: where there are no states, all groups would be taken for those of each
        groups = _groups(unwrapped, optimizer)
        own = {name: states[name] for group in groups for name in group["params"] if name in states}
        set_optimizer_state_dict(model, optimizer, {"state": own, "param_groups": groups}, options=whole)
    some = StateDictOptions(full_state_dict=True, broadcast_from_rank0=several, strict=not adapted)
    set_model_state_dict(model, weights, options=some)
    record, random = broadcast_object_list([record, random])
    if record["num_processes"] == accelerator.num_processes:
        _set_random_state(accelerator, random)
    return record["step"]


def read_record(path: Path) -> dict[str, Any]:
    """What ``training.json`` of a checkpoint says; raises ``OSError`` or ``ValueError`` if it is none of this format."""
    record = json.loads((path / "training.json").read_text(encoding="utf-8"))
    if record.get("format") != FORMAT:
        raise ValueError(f"it has checkpoint format {record.get('format')!r}, and this version reads {FORMAT}")
    return record


def save_model(
    config: LDMConfig,
    weights: dict[str, Any],
    processor: LDMProcessor,
    folder: Path,
    training: Training | None = None,
    load_as: Path | None = None,
) -> None:
    """Write weights, configuration, processor and code as ``from_pretrained`` reads them.

    With ``training`` also a card, whose code loads ``load_as``, the final name of the folder.
    """
    with torch.device("meta"):
        # A wrapped or sharded model is of another class, whose name and code must not get into the folder.
        model = LDMModel(config)
    model.save_pretrained(folder, state_dict=weights)
    processor.save_pretrained(folder)
    if training is not None and load_as is not None:
        card = training_card(load_as.as_posix(), config.to_dict(), training, model.num_parameters())
        (folder / CARD).write_text(card, encoding="utf-8")
        _keep_evaluation(load_as, folder)


def _keep_evaluation(before: Path, folder: Path) -> None:
    """Take over card, report and images of an evaluation of the same weights."""
    if evaluated_weights(before) == weights_hash(folder):
        for path in (before / name for name in EVALUATION_FILES):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)


def save_finished(
    accelerator: Accelerator,
    model: torch.nn.Module,
    processor: LDMProcessor,
    output: Path,
    precision: str = "fp32",
    training: Training | None = None,
) -> Path:
    """Write the model of a run that has ended to ``output/model``, and adapters to ``output/adapter`` as peft reads them.

    Every process calls this. With ``fp16`` numbers are rounded to half precision in the file; the configuration still says
    float32, which is what they are loaded as. The folder has a card that says what it was trained on; of weights that were
    evaluated there already, the card and report of the evaluation stay.

    Raises:
        CheckpointError: it cannot be written, or a weight is not finite; the run's checkpoints are untouched.
    """
    folder = output / "model"
    weights: dict[str, Any] = get_model_state_dict(model, options=_ON_MAIN)

    def write() -> None:
        _check_finite(weights)
        unwrapped = accelerator.unwrap_model(model)
        if is_adapted(unwrapped):
            with replacing(output / "adapter") as temporary:
                save_adapter(unwrapped, weights, temporary)
        with replacing(folder) as temporary:
            plain = plain_weights(unwrapped, weights)
            if precision == "fp16":
                plain = {name: tensor.half() for name, tensor in plain.items()}
            save_model(unwrapped.config, plain, processor, temporary, training, load_as=folder)

    on_main(accelerator, write, f"{folder} cannot be written: {{}}; the run's checkpoints are untouched")
    return folder


def on_main(accelerator: Accelerator, work: Callable[[], Result], message: str) -> Result | None:
    """Do something on the main process. If it fails, all processes do, instead of waiting for it forever."""
    result, error, reasons = None, None, [""]
    if accelerator.is_main_process:
        try:
            result = work()
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as caught:
            error, reasons = caught, [" ".join(str(caught).split())[:300] or type(caught).__name__]
    (reason,) = broadcast_object_list(reasons)
    if reason:
        raise CheckpointError(message.format(reason)) from error
    return result


def _check_finite(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite: training diverged")


def _stored(model: LDMModel) -> dict[str, torch.nn.Parameter]:
    """The parameters that a checkpoint of training holds: all of them, or the adapters only."""
    alone = is_adapted(model)
    return {name: part for name, part in model.named_parameters() if part.requires_grad or not alone}


def _check_shapes(weights: dict[str, torch.Tensor], parameters: dict[str, torch.nn.Parameter]) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        name = min(name for name in expected | found if found.get(name) != expected.get(name))
        raise ValueError(
            f"its {name} is {found.get(name)}, and the model's {expected.get(name)}: it is of another model"
        )


def _by_parameter(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    states: dict[str, Any] = {}
    for key, tensor in tensors.items():
        name, _, state = key.rpartition(".")
        states.setdefault(name, {})[state] = tensor
    return states


def _groups(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """An optimizer's groups as they are, by names: what is in them comes from the settings, not from a checkpoint."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [
        {**group, "params": [names[parameter] for parameter in group["params"]]} for group in optimizer.param_groups
    ]


def _random_state(accelerator: Accelerator) -> list[tuple[str, torch.Tensor]]:
    rank, device = accelerator.process_index, accelerator.device
    state = [(f"{rank}.cpu", torch.get_rng_state())]
    if device.type == "cuda":
        state.append((f"{rank}.cuda", torch.cuda.get_rng_state(device)))
    return state


def _set_random_state(accelerator: Accelerator, states: dict[str, torch.Tensor]) -> None:
    rank, device = accelerator.process_index, accelerator.device
    torch.set_rng_state(states[f"{rank}.cpu"])
    if device.type == "cuda" and f"{rank}.cuda" in states:
        torch.cuda.set_rng_state(states[f"{rank}.cuda"], device)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))
