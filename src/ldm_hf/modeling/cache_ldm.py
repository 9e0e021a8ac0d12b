"""The key-value cache of a rollout: memory for the whole context, taken once."""

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class RolloutLayer(DynamicLayer):
    """Keys and values of one layer, written into memory for ``capacity`` tokens; a step copies nothing that is there.

    What the attention gets are views of the part that is filled, so that it costs what the context is long.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._memory: tuple[torch.Tensor, torch.Tensor] | None = None
        self._length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens of shape (B, heads, tokens, size); returns all keys and values so far."""
        if self._memory is None:
            shape = (*key_states.shape[:2], self._capacity, key_states.shape[3])
            self._memory = key_states.new_empty(shape), value_states.new_empty(shape)
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        stop = self._length + key_states.shape[2]
        for memory, states in zip(self._memory, (key_states, value_states), strict=True):
            memory[:, :, self._length : stop] = states
        self._show(stop)
        keys, values = self._memory
        return keys[:, :, :stop], values[:, :, :stop]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows of the batch only."""
        if self._memory is not None:
            self._memory = self._memory[0][indices], self._memory[1][indices]
            self._show(self._length)

    def reset(self) -> None:
        """Forget the tokens, and keep the memory."""
        if self._memory is not None:
            self._show(0)

    def _show(self, length: int) -> None:
        assert self._memory is not None
        self._length = length
        self.keys, self.values = (memory[:, :, :length] for memory in self._memory)


class RolloutCache(Cache):
    """A layer of memory for ``capacity`` tokens for each of a model's layers."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[RolloutLayer(capacity) for _ in range(num_layers)])
