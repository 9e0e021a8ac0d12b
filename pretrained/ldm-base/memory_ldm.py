"""Memory of a rollout: its context's raw transitions (``RolloutContext``), and their keys and values (``RolloutCache``).

Shapes: B rows, one per environment; keys and values of a layer are (B, heads, N, head size), N the context length.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, StaticLayer

from .processing_ldm import NOT_DONE, START, TERMINATED, TRUNCATED
from .spaces_ldm import SlotLayout


class RolloutContext:
    """Memory for the transitions of a batch of environments; nothing is kept of slots and images that no row has.

    Args:
        observed, acted: the layouts of each row.
        capacity: the context length.
        image_size: side of the images.
        device: where the memory is.
    """

    def __init__(
        self,
        observed: Sequence[SlotLayout],
        acted: Sequence[SlotLayout],
        capacity: int,
        image_size: int,
        device: torch.device,
    ) -> None:
        self.capacity = capacity
        self.length = 0
        self._describe(observed, acted)
        # One tensor for all numbers, so that a step is one copy to the device; float32 holds every symbol exactly.
        width = self._num_observations + self._num_actions + 2
        self._numbers = torch.zeros(len(observed), capacity, width, device=device)
        image_shape = (len(self.image_rows), capacity, 3, image_size, image_size)
        self._images = torch.zeros(image_shape, dtype=torch.uint8, device=device)

    def append(
        self,
        flat: Sequence[tuple[np.ndarray, np.ndarray | None]],
        actions_BA: np.ndarray,
        outcome: tuple[Sequence[float], Sequence[bool], Sequence[bool]] | None,
    ) -> None:
        """Add flattened observations, and the actions and outcome (rewards and ends) before them, if there are any."""
        newest = np.zeros((len(flat), self._numbers.shape[2]), np.float32)
        for row, (slots, _) in enumerate(flat):
            newest[row, : len(slots)] = slots
        newest[:, self._num_observations : -2] = actions_BA
        newest[:, -1] = START
        if outcome is not None:
            rewards, terminated, truncated = outcome
            newest[:, -2] = rewards
            newest[:, -1] = np.where(terminated, TERMINATED, np.where(truncated, TRUNCATED, NOT_DONE))
        self._numbers[:, self.length] = torch.from_numpy(newest)
        if self.image_rows:
            images = np.stack([np.asarray(flat[row][1]) for row in self.image_rows])
            self._images[:, self.length] = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.length += 1

    def forget_older_half(self) -> None:
        """Move the newer half to the front; as in training, its first transition has nothing before it."""
        kept = self.capacity // 2
        for tensor in (self._numbers, self._images):
            tensor[:, :kept] = tensor[:, self.length - kept : self.length].clone()
        self._numbers[:, 0, -1] = START
        self.length = kept

    def newest(self) -> dict[str, Any]:
        """The model's inputs for the newest transition of all rows."""
        return self.inputs(self.length - 1, self.length)

    def inputs(self, first: int, stop: int, rows: slice = slice(None)) -> dict[str, Any]:
        """The model's inputs for some transitions of some rows."""
        numbers = self._numbers[rows, first:stop]
        slots = [self._num_observations, self._num_actions, 1, 1]
        observations, actions, rewards, dones = numbers.split(slots, -1)
        inputs = {
            "observations": observations,
            "previous_actions": actions,
            "previous_rewards": rewards.squeeze(-1),
            "previous_dones": dones.squeeze(-1).long(),
        }
        images = [index for index, row in enumerate(self.image_rows) if row in range(len(self._numbers))[rows]]
        if images:
            inputs["images"] = self._images[images[0] : images[-1] + 1, first:stop]
        return inputs

    def select(self, rows: Sequence[int], observed: Sequence[SlotLayout], acted: Sequence[SlotLayout]) -> None:
        """Keep these rows, whose layouts are given, in this order."""
        slots = [self._num_observations, self._num_actions, 2]
        observations, actions, rest = self._numbers[list(rows)].split(slots, -1)
        self._images = self._images[[self.image_rows.index(row) for row in rows if row in self.image_rows]]
        self._describe(observed, acted)
        parts = [observations[..., : self._num_observations], actions[..., : self._num_actions], rest]
        self._numbers = torch.cat(parts, -1)

    def _describe(self, observed: Sequence[SlotLayout], acted: Sequence[SlotLayout]) -> None:
        self._num_observations = max((layout.num_slots for layout in observed), default=0)
        self._num_actions = max((layout.num_slots for layout in acted), default=0)
        self.image_rows = [row for row, layout in enumerate(observed) if layout.image is not None]


class RolloutCache(Cache):
    """A layer of memory for each of a model's layers."""

    def __init__(self, memory: Sequence[tuple[torch.Tensor, torch.Tensor]], length: int = 0) -> None:
        self.rollout_layers = [RolloutLayer(each, length) for each in memory]
        super().__init__(layers=list(self.rollout_layers))

    @classmethod
    def allocate(
        cls, config: PretrainedConfig, rows: int, capacity: int, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> "RolloutCache":
        """Take memory for ``capacity`` tokens of each row; ``devices`` are those of the layers."""
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (rows, config.num_key_value_heads, capacity, size)
        # Zeros: a compiled step multiplies what is not filled by nothing, and nothing times NaN is NaN.
        both = [torch.zeros(2, *shape, dtype=dtype, device=device) for device in devices]
        return cls([(keys, values) for keys, values in both])

    @property
    def memory(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of each layer, with what is not filled."""
        return [layer.memory for layer in self.rollout_layers]

    def show(self, length: int) -> None:
        """Hold the first ``length`` tokens in memory."""
        for layer in self.rollout_layers:
            layer.show(length)

    def take(self, other: "RolloutCache") -> None:
        """Hold the tokens of another cache instead, which is empty then; its memory may be smaller."""
        length = other.get_seq_length()
        for mine, theirs in zip(self.memory, other.memory, strict=True):
            for to, what in zip(mine, theirs, strict=True):
                to[:, :, :length] = what[:, :, :length]
        self.show(length)
        other.show(0)

    def part(self, rows: slice) -> "RolloutCache":
        """A cache of some rows, in the same memory."""
        return RolloutCache([(keys[rows], values[rows]) for keys, values in self.memory], self.get_seq_length())

    def select(self, rows: torch.Tensor) -> "RolloutCache":
        """A cache of these rows, in memory of its own."""
        memory = [(keys[rows.to(keys.device)], values[rows.to(keys.device)]) for keys, values in self.memory]
        return RolloutCache(memory, self.get_seq_length())

    def fixed(self, position: torch.Tensor) -> Cache:
        """The same memory for a compiled step, which writes at ``position``."""
        return Cache(layers=[FixedLayer(each, position) for each in self.memory])


class RolloutLayer(DynamicLayer):
    """Keys and values of one layer, written into memory; a step copies nothing that is there.

    What the attention gets are views of the part that is filled, so that it costs what the context is long.
    """

    def __init__(self, memory: tuple[torch.Tensor, torch.Tensor], length: int) -> None:
        super().__init__()
        self.memory = memory
        self.dtype, self.device, self.is_initialized = memory[0].dtype, memory[0].device, True
        self.show(length)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens of shape (B, heads, tokens, size); returns all keys and values so far."""
        first = self.get_seq_length()
        keys, values = self.show(first + key_states.shape[2])
        keys[:, :, first:] = key_states
        values[:, :, first:] = value_states
        return keys, values

    def show(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Hold the first ``length`` tokens; returns their keys and values."""
        keys, values = (memory[:, :, :length] for memory in self.memory)
        self.keys, self.values = keys, values
        return keys, values


class FixedLayer(StaticLayer):
    """The same memory for a compiled step: all of it is shown, and where a token goes is a number on the device.

    The library's own layer counts for itself; here all layers share one number, which a rollout sets.
    """

    def __init__(self, memory: tuple[torch.Tensor, torch.Tensor], position: torch.Tensor) -> None:
        super().__init__(memory[0].shape[2])
        self.keys, self.values = memory
        self.cumulative_length = position
        self.dtype, self.device, self.is_initialized = memory[0].dtype, memory[0].device, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token; returns all memory, of which a mask hides what is not filled."""
        assert self.keys is not None and self.values is not None
        place = self.cumulative_length.view(1)
        self.keys[:, :, place] = key_states
        self.values[:, :, place] = value_states
        return self.keys, self.values
