"""Fast steps of a rollout: packed weights on a CPU (``PackedLinear``), and a step as one graph (``CompiledStep``).

Shapes: B rows, one per environment; A action slots of the widest row; K the number of bins.
"""

import copy
import inspect
import platform
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten
from transformers import Cache, LlamaModel

from .memory_ldm import RolloutCache

CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
"""What transformers calls a cache, as an argument and as an output: it was renamed in 5.24."""

_LARGE = 2**18
"""Weights of a layer that is packed, at least. oneDNN shares out even the smallest product among all threads, and where
other programs run too, waiting for those costs far more than the product."""


class PackedLinear(nn.Module):
    """A linear layer whose weights oneDNN keeps in the order in which it reads them.

    Measured on an AMD processor in float32, two threads: 2.2 times as fast as ``nn.Linear`` for 1 row, 2.8 times for 32, and
    2.3 times for hundreds. The arithmetic is the same; sums are in another order.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self._bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")


def packed(model: Any) -> Any:
    """A model for acting: it shares its parameters with ``model``, but the backbone's large layers are packed.

    Packed weights are a copy, of what the model was when this was called. Where packing does not apply, on other devices and
    processors, in other types than float32, where weights are offloaded and where no layer is large, the model itself is
    returned.
    """
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")  # elsewhere nobody has measured it
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        return model  # is packed
    if is_offloaded(model) or model.device.type != "cpu" or model.dtype != torch.float32 or not on_x86:
        return model
    # The operators are those of torch's own compiler, not of its public interface: a release may lack them.
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return model
    if not any(map(_is_large, model.backbone.modules())):
        return model
    acting = sharing(model)
    for module in list(acting.backbone.modules()):
        for name, child in list(module.named_children()):
            if _is_large(child):
                setattr(module, name, PackedLinear(child))
    return acting


def _is_large(module: nn.Module) -> bool:
    """Whether packing a layer is worth it."""
    return type(module) is nn.Linear and module.weight.numel() >= _LARGE


def sharing(model: Any) -> Any:
    """A model of its own, with settings of its own, that shares its parameters and packed weights with ``model``."""
    packed_layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    shared = (*model.parameters(), *model.buffers(), *packed_layers)
    return copy.deepcopy(model, {id(each): each for each in shared})


class CompiledStep:
    """Reads one transition of each row, from embedding to the choice of actions; compiled at the first call.

    Args:
        model: an ``LDMModel``.
        inputs: a step's inputs; every step's have these shapes.
        rows: inputs that are the same at every step.
        cache: where keys and values are.
    """

    def __init__(
        self, model: Any, inputs: Mapping[str, torch.Tensor], rows: Mapping[str, Any], cache: RolloutCache
    ) -> None:
        self._model, self._rows = model, rows
        self._inputs = {name: torch.empty_like(tensor).contiguous() for name, tensor in inputs.items()}
        self._position = torch.zeros((), dtype=torch.int64, device=model.device)
        self._cache = cache.fixed(self._position)
        # What stays where it is need not be copied before CUDA replays the step.
        for leaf in tree_flatten([self._inputs, self._rows, self._position, cache.memory])[0]:
            if isinstance(leaf, torch.Tensor):
                torch._dynamo.mark_static_address(leaf)
        # torch counts compilations by code object, and gives up after eight: each rollout needs one of its own.
        own = types.FunctionType(decode.__code__.replace(), globals())
        self._run = torch.compile(own, fullgraph=True, dynamic=False, mode="reduce-overhead")

    def __call__(self, position: int, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, A, K) and bins (B, A); they are overwritten by the next step."""
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor)
        self._position.fill_(position)
        return self._run(self._model, self._inputs, self._rows, self._cache)


def decode(
    model: Any, inputs: Mapping[str, torch.Tensor], rows: Mapping[str, Any], cache: Cache
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read transitions: logits (B, A, K) of the newest one's action, and the most likely bins (B, A)."""
    output = model(**inputs, **rows, cache=cache, use_cache=True, logits_to_keep=1, return_dict=True)
    logits_BAK = output.logits[:, 0]
    return logits_BAK, logits_BAK.argmax(-1)


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate brings weights of a model to the device when they are needed (``device_map``)."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def acting_device(module: nn.Module) -> torch.device:
    """Where a module computes, which is not where its weights are if they are offloaded."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device
