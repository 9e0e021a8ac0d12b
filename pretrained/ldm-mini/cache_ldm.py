"""The key-value cache of a rollout: memory for the whole context, taken once.

Shapes: B rows, N the context length; keys and values of a layer are (B, heads, N, head size).
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import Cache, LlamaModel, PretrainedConfig
from transformers.cache_utils import DynamicLayer, StaticLayer

CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
"""What transformers calls a cache, as an argument and as an output: it was renamed in 5.24."""


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
        """Hold so many tokens; returns their keys and values."""
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
        """Hold so many tokens, the first ones in memory."""
        for layer in self.rollout_layers:
            layer.show(length)

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
