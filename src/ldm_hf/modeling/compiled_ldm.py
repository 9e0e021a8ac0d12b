"""The step of a rollout as one compiled graph, of fixed shapes and fixed addresses, so that CUDA can replay it."""

import types
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_flatten
from transformers import Cache

from .cache_ldm import RolloutCache


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
