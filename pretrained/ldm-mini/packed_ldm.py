"""Linear layers for rollout on a CPU: one token a row at a time is what general matrix products are slowest at."""

import copy
import platform
from typing import Any

import torch
from torch import nn

from .cache_ldm import is_offloaded

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

    Packed weights are a copy, of what the model was when this was called. Where packing does not apply, on other devices
    and processors, in other types than float32 and where weights are offloaded, the model itself is returned.
    """
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")  # elsewhere nobody has measured it
    if is_offloaded(model) or model.device.type != "cpu" or model.dtype != torch.float32 or not on_x86:
        return model
    # The operators are those of torch's own compiler, not of its public interface: a release may lack them.
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    acting = copy.deepcopy(model, shared)
    for module in list(acting.backbone.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.weight.numel() >= _LARGE:
                setattr(module, name, PackedLinear(child))
    return acting
