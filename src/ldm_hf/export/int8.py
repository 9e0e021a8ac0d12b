"""Weights as 8-bit integers: a quarter of the size. Sums are of floats, so that model and export agree as without."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from ldm_hf.modeling import LDMModel

_LEAST_SCALE = 1e-12
_LARGE = 1024
"""Numbers of a weight that is stored as integers, at least: smaller ones are not worth their scales."""


class _Int8(nn.Module):
    """A weight whose numbers are stored as integers from -127 to 127, times a scale for each row of its first axis."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        scale = weight.abs().amax(list(range(1, weight.dim())), keepdim=True).clamp(min=_LEAST_SCALE) / 127
        return (weight / scale).round() * scale


def with_int8_weights(model: "LDMModel") -> "LDMModel":
    """A copy of a model that computes what its int8 export computes: large weights are rounded, sums are not."""
    rounded = copy.deepcopy(model).eval()
    for module in list(rounded.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dim() > 1 and parameter.numel() >= _LARGE:
                parametrize.register_parametrization(module, name, _Int8())
                parametrize.remove_parametrizations(module, name)
    return rounded


def store_as_integers(graph: Any) -> None:
    """Replace large weights, which ``with_int8_weights`` rounded, by integers and scales that give the same floats."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    for weight in list(graph.initializer):
        numbers = numpy_helper.to_array(weight)
        if numbers.dtype != "float32" or numbers.ndim < 2 or numbers.size < _LARGE:
            continue
        found = _integers(torch.from_numpy(numbers.copy()))
        if found is None:
            continue  # something that the exporter computed of weights
        names = [f"{weight.name}.int8", f"{weight.name}.scale"]
        for name, array in zip(names, found, strict=True):
            graph.initializer.append(numpy_helper.from_array(array.numpy(), name))
        # Not DequantizeLinear, which onnxruntime fuses into products that round the activations to 8 bits as well: four
        # times as slow here, and wrong by 0.07 in a logit. This it computes once, when it loads the graph.
        floats = f"{weight.name}.float"
        nodes.append(helper.make_node("Cast", names[:1], [floats], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [floats, names[1]], [weight.name]))
        graph.initializer.remove(weight)
    for node in reversed(nodes):
        graph.node.insert(0, node)


def _integers(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Numbers in int8 and scales to multiply them with, if they give the weight.

    The exporter may have turned a weight, so that its rows are along another axis, or taken one row of it.
    """
    axes = range(weight.dim())
    for others in (*([other for other in axes if other != axis] for axis in axes), list(axes)):
        scale = weight.abs().amax(others, keepdim=True).clamp(min=_LEAST_SCALE) / 127
        whole = (weight / scale).round()
        if torch.allclose(whole * scale, weight, rtol=1e-5, atol=1e-9):
            return whole.to(torch.int8), scale
    return None
