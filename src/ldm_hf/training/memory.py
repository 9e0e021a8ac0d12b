"""How much memory a training step takes, by estimate, and whether a device, or what loaders share, has that much."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator

from ldm_hf.errors import ConfigError
from ldm_hf.modeling import LDMConfig, LDMModel
from ldm_hf.modeling.spaces_ldm import SlotLayout
from ldm_hf.training.config import TrainingConfig

_BYTES_PER_PARAMETER = 16
"""Weight, gradient and AdamW's two moments, in float32."""

_USABLE = 0.9
"""Share of the free memory that is counted on: allocators leave gaps."""


_BATCHES = 3
"""Batches of a loader process in shared memory: two that it has ready, as PyTorch's loader asks, and one on its way."""

_SHARED = Path("/dev/shm")


def activation_bytes(config: LDMConfig, transitions: int, bf16: bool) -> int:
    """What the layers keep of a forward pass for the backward pass, if nothing is computed again.

    Measured by what autograd saves of a layer: 25 kB for a transition with 32m and 92 kB with 308m in bf16, 43 and 162 kB in
    float32, of which this estimate differs by -2 % and +11 to +14 %.

    Args:
        config: of the model.
        transitions: of the pass, over all of its rows.
        bf16: whether layers compute in bfloat16.
    """
    of_layer = 8 * config.intermediate_size + 32 * config.hidden_size
    return config.num_hidden_layers * of_layer * transitions * (1 if bf16 else 2)


def needs_recomputation(accelerator: Accelerator, model: LDMModel, config: TrainingConfig) -> bool:
    """Whether activations are recomputed: as the settings say, or where a device would not hold them."""
    if config.gradient_checkpointing is not None or accelerator.device.type != "cuda":
        return bool(config.gradient_checkpointing)
    processes = accelerator.num_processes
    passes = config.accumulation_steps(processes) * processes
    length = config.context_length or model.config.max_position_embeddings
    activations = activation_bytes(
        model.config, config.train_batch_size // passes * length, accelerator.mixed_precision == "bf16"
    )
    parameters = _BYTES_PER_PARAMETER * model.num_parameters() // (processes if config.sharding == "fsdp2" else 1)
    free, _ = torch.cuda.mem_get_info(accelerator.device)
    return parameters + activations > _USABLE * free


def loader_bytes(layouts: Iterable[tuple[SlotLayout, SlotLayout]], rows: int, length: int) -> int:
    """Shared memory that one loader process takes: three batches whose rows are all of the largest environment.

    Args:
        layouts: of observations and actions of each environment.
        rows: of a batch.
        length: transitions of a row.
    """
    largest = 0
    for observed, acted in layouts:
        image = 0 if observed.image is None else 3 * observed.image_size**2
        # Observations, actions, labels and a reward in 4 bytes each, and the done signal in 8.
        largest = max(largest, 4 * (observed.num_slots + 2 * acted.num_slots + 1) + 8 + image)
    return _BATCHES * rows * length * largest


def check_shared_memory(bytes_of_loader: int, config: TrainingConfig) -> None:
    """Raise ``ConfigError`` where loader processes would be killed for want of shared memory."""
    if not config.dataloader_num_workers or not _SHARED.is_dir():
        return
    needed = bytes_of_loader * config.dataloader_num_workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = shutil.disk_usage(_SHARED).free
    if needed > free:
        raise ConfigError(
            f"loader processes need {needed / 2**20:,.0f} MiB of shared memory and {_SHARED} has {free / 2**20:,.0f} free: "
            "give a container more (--shm-size), or set dataloader_num_workers or per_device_train_batch_size lower"
        )
