"""Checkpoints from which training goes on bit for bit: weights, optimizer, data position, random state.

A checkpoint is a folder ``checkpoint-<step>`` that ``AutoModel.from_pretrained`` can load, plus

- ``optimizer.safetensors``: ``<parameter index>.<state name>`` tensors;
- ``training.json``: format version, step, parameter groups, number of processes;
- ``random-<rank>.safetensors``: the random state of each process.

It is written under a temporary name and renamed, so a folder with the final name is always whole. Nothing is pickled.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ldm_hf.errors import CheckpointError
from ldm_hf.files import publish, remove
from ldm_hf.modeling.modeling_ldm import LDMModel
from ldm_hf.modeling.processing_ldm import LDMProcessor

FORMAT = 1
_PREFIX = "checkpoint-"


def latest_checkpoint(output: Path) -> Path | None:
    """The checkpoint with the highest step in a run's folder, if there is one."""
    return max(output.glob(f"{_PREFIX}[0-9]*[0-9]"), key=_step_of, default=None)


def save_checkpoint(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    processor: LDMProcessor,
    output: Path,
    step: int,
    keep: int,
) -> Path:
    """Write the checkpoint of ``step`` optimizer steps; every process calls this. Older ones beyond ``keep`` go.

    Raises:
        CheckpointError: it cannot be written (a full disk, say); checkpoints that were there before still are.
    """
    path = output / f"{_PREFIX}{step:08d}"
    temporary = path.with_name(f"{path.name}.partial")
    if accelerator.is_main_process:
        remove(temporary)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    error = None
    try:
        if accelerator.is_main_process:
            _save_shared(accelerator, model, optimizer, processor, temporary, step)
        save_file(_random_state(accelerator.device), temporary / f"random-{accelerator.process_index}.safetensors")
    except (OSError, SafetensorError) as caught:
        error = caught
    _raise_together(accelerator, error, path, temporary)
    if accelerator.is_main_process:
        publish(temporary, path)
        for old in sorted(output.glob(f"{_PREFIX}[0-9]*[0-9]"), key=_step_of)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return path


def load_checkpoint(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer, path: Path
) -> int:
    """Put a checkpoint into a prepared model and optimizer; returns the number of steps that were done.

    On another number of processes than wrote it, training goes on with the same data, but with a new random state.

    Raises:
        CheckpointError: a file is missing, damaged or of another format.
    """
    try:
        state = json.loads((path / "training.json").read_text())
        if state.get("format") != FORMAT:
            raise CheckpointError(f"{path} has checkpoint format {state.get('format')!r}; this version reads {FORMAT}")
        accelerator.unwrap_model(model).load_state_dict(load_file(path / "model.safetensors"))
        optimizer.load_state_dict(_unflatten(load_file(path / "optimizer.safetensors"), state["parameter_groups"]))
        if state["num_processes"] == accelerator.num_processes:
            _set_random_state(load_file(path / f"random-{accelerator.process_index}.safetensors"), accelerator.device)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} cannot be continued from: {reason}; delete it to use an older one") from error
    return state["step"]


def _save_shared(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    processor: LDMProcessor,
    folder: Path,
    step: int,
) -> None:
    save_model(accelerator.unwrap_model(model), processor, folder)
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.contiguous().cpu()
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    save_file(tensors, folder / "optimizer.safetensors")
    record = {
        "format": FORMAT,
        "step": step,
        "num_processes": accelerator.num_processes,
        "parameter_groups": state["param_groups"],
    }
    (folder / "training.json").write_text(json.dumps(record, indent=1))


def save_model(model: LDMModel, processor: LDMProcessor, folder: Path) -> None:
    """Write weights, configuration, processor and code as ``from_pretrained`` reads them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _raise_together(accelerator: Accelerator, error: Exception | None, path: Path, temporary: Path) -> None:
    """If one process failed, all do, instead of waiting for each other for ever."""
    own: list[str | None] = [None if error is None else str(error)]
    messages: list[str | None] = gather_object(own)
    failures = [message for message in messages if message is not None]
    if failures:
        if accelerator.is_main_process:
            remove(temporary)
        reason = " ".join(failures[0].split())
        raise CheckpointError(f"{path} cannot be written: {reason}; earlier checkpoints are untouched") from error


def _unflatten(tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": groups}


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))
