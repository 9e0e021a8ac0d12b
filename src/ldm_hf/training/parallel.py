"""How a run is laid out on its processes: precision, data parallelism, sharding, compiled layers, and a common end."""

import contextlib
import functools
import signal
from collections.abc import Iterator
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.utils.checkpoint import checkpoint

from ldm_hf.errors import ConfigError
from ldm_hf.modeling import LDMModel
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.memory import needs_recomputation
from ldm_hf.training.optimizers import Optimizers

_PATIENCE = timedelta(hours=1)
"""How long a process waits for the others: one may write a large checkpoint or have the slowest environment."""

_OURS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Join the other processes, if ``accelerate launch`` (or whatever sets its variables) started several.

    Raises:
        ConfigError: the launcher's configuration asks for another way to share the work out than the settings can.
    """
    if config.tf32 or (config.tf32 is None and torch.cuda.is_available()):
        torch.set_float32_matmul_precision("high")
    accelerator = Accelerator(
        mixed_precision="bf16" if _computes_in_bf16(config.bf16) else "no",
        log_with=None if config.report_to == "none" else config.report_to,
        project_dir=config.output_dir,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=_PATIENCE),
        ],
    )
    if accelerator.distributed_type not in _OURS:
        raise ConfigError(
            f"accelerate is configured for {accelerator.distributed_type.value}; the setting sharding says how a model is "
            "shared out: choose MULTI_GPU or a single process in accelerate's configuration"
        )
    return accelerator


def distribute(accelerator: Accelerator, model: LDMModel, config: TrainingConfig) -> torch.nn.Module:
    """Bring a model to this process's device and make its gradients the mean of those of all processes.

    With one process there is nothing to shard, so a run with ``sharding: fsdp2`` continues there as any other.
    """
    compiled = accelerator.device.type == "cuda" if config.torch_compile is None else config.torch_compile
    recomputed = needs_recomputation(accelerator, model, config)
    for layer in model.backbone.layers:
        # Their forward only: names of parameters stay, and what FSDP does around it is neither compiled nor repeated.
        if compiled:
            layer.forward = torch.compile(layer.forward)
        if recomputed:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    if config.sharding == "fsdp2" and accelerator.num_processes > 1:
        return _shard(accelerator, model)
    return accelerator.prepare_model(model)


def _shard(accelerator: Accelerator, model: LDMModel) -> torch.nn.Module:
    """FSDP2: every process keeps a share of each weight in float32; a layer's weights are gathered while it is at work.

    Accelerate's own FSDP2 does not exist on CPUs, where the tests run, and would gather the embedding table, which a
    transition needs several times, as a unit of its own.
    """
    computing = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    # Inputs must not be cast: observations are raw values, of which bf16 would leave three digits before they are
    # quantised. Layers get bf16 from the embedding, whose weights are.
    policy = MixedPrecisionPolicy(param_dtype=computing, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    model.to(accelerator.device)
    for layer in model.backbone.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


@contextlib.contextmanager
def accumulating(model: torch.nn.Module) -> Iterator[None]:
    """Around the pieces of a step before its last: gradients stay where they are, and are shared with the last."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    elif isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield


def on_any_process(accelerator: Accelerator, flags: torch.Tensor, *more: bool) -> list[bool]:
    """Whether any process has each of some flags, bool of shape (F,) on its device, and of some more of the host's.

    All processes call this together. It is the one place where a step waits for the device.
    """
    every = torch.cat([flags, torch.tensor(more, dtype=torch.bool).to(accelerator.device, non_blocking=True)])
    return [bool(count) for count in accelerator.reduce(every.float(), "sum").tolist()]


def all_finite(optimizers: Optimizers) -> torch.Tensor:
    """Whether what this process has of the trained parameters is finite, a bool on their device."""
    trained = [parameter.detach() for one in optimizers for group in one.param_groups for parameter in group["params"]]
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in trained]
    # The largest magnitude: a sum of squares would overflow before a weight does. A share of a small weight may be empty.
    return get_total_norm([tensor for tensor in local if tensor.numel()], norm_type=float("inf")).isfinite()


def ignore_termination(_worker: int) -> None:
    """For loader workers: a signal to a whole job must not take them from under the step that is being finished."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _computes_in_bf16(asked: bool | None) -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported() if asked is None else asked
