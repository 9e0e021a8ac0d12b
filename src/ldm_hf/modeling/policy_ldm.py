"""Rollout: ``LDMPolicy`` acts in environments, one transition per step.

It keeps the raw transitions of its context (``RolloutContext``) and their keys and values (``RolloutCache``), so that a step
costs one token. On a CPU it computes with packed weights (``PackedLinear``); with ``compile`` a step is one graph
(``CompiledStep``).

Shapes: B rows, one per environment, R of them with images; N the context length; S observation slots, A action slots of the
widest row; K the number of bins; keys and values of a layer are (B, heads, N, head size).
"""

import copy
import inspect
import platform
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten
from transformers import Cache, LlamaModel, PretrainedConfig
from transformers.cache_utils import DynamicLayer, StaticLayer

from .packing_ldm import group_rows
from .processing_ldm import NOT_DONE, START, TERMINATED, TRUNCATED, LDMProcessor
from .quantization_ldm import ActionCode
from .spaces_ldm import CONTINUOUS, SlotLayout, Transitions

CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
"""What transformers calls a cache, as an argument and as an output: it was renamed in 5.24."""


_TOKENS_AT_ONCE = 4096
"""Transitions that are read at a time when a context is rebuilt: what is in between takes memory for so many."""


_READ_AHEAD = 256
"""Transitions of the newer half of a context that are read at a time, before it takes over: a pass of fewer takes nearly as
long where weights have to be read from memory, and one of more holds up the step before which it comes."""

_LARGE = 2**18
"""Weights of a layer that is packed, at least. oneDNN shares out even the smallest product among all threads, and where
other programs run too, waiting for those costs far more than the product."""

_REPEATED = 0.5
"""Chance that a row that explores repeats its last draw."""


class LDMPolicy:
    """Acts in a batch of environments, which may be of different kinds, one transition per step.

    The context starts empty and is kept across episodes. A key-value cache makes a step cost one token. When the context is
    full, its older half is forgotten, and the rollout continues as if it had begun with the newer one. That half is read a
    second time, from the raw transitions and while it is being filled, so that no step has to wait for all of it; how it
    is divided changes only the order of sums.

    The weights are those of the moment: a policy does not notice that its model is trained further.

    Args:
        model: an ``LDMModel``.
        processor: its ``LDMProcessor``.
        environments: what to act in, one per row: anything with ``observation_space`` and ``action_space`` (Gymnasium
            spaces, or their JSON).
        context_length: most transitions to remember; by default, and at most, what the model was trained for.
        compile: whether steps are one graph, made by ``torch.compile`` at the first step and after each ``select``, which
            takes a minute; with CUDA it is replayed without Python. On a CPU steps are as fast without.
        temperature: 0 takes the most likely bins. Otherwise bins are drawn, from the logits divided by it.
        exploration_temperature: the same in environments all of whose rewards so far were alike: a context that says nothing
            of what is good has to look around first, and every second draw there is that of the step before, which gets
            further than drawing each. By default ``temperature`` there too. What it is worth is in docs/in_context.md.
        seed: of what is drawn.

    Raises:
        UnsupportedSpaceError: an environment does not fit the model.

    Examples:
        >>> policy = LDMPolicy(model, processor, [env])
        >>> observation, info = env.reset()
        >>> (action,) = policy.act([observation])
        >>> observation, reward, terminated, truncated, info = env.step(action)
        >>> (action,) = policy.act([observation], [reward], [terminated], [truncated])
    """

    def __init__(
        self,
        model: Any,
        processor: LDMProcessor,
        environments: Sequence[Any],
        context_length: int | None = None,
        compile: bool = False,
        temperature: float = 0.0,
        seed: int = 0,
        exploration_temperature: float | None = None,
    ):
        limit = model.config.max_position_embeddings
        self.context_length = limit if context_length is None else context_length
        if not 2 <= self.context_length <= limit:
            raise ValueError(f"context_length must be from 2 to {limit} (the model's), got {context_length}")
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        if exploration_temperature is not None and exploration_temperature < 0:
            raise ValueError(f"exploration_temperature must be at least 0, got {exploration_temperature}")
        self.temperature, self.exploration_temperature = temperature, exploration_temperature
        if compile and is_offloaded(model):
            raise ValueError("compile needs all weights on one device, and device_map has offloaded some of this model")
        self._device = device = acting_device(model)
        self._generator = torch.Generator(device).manual_seed(seed)
        # A graph cannot hold packed weights.
        self.model = model.eval() if compile else packed(model.eval())
        self.processor = processor
        self._compile = compile
        self._observation_layouts = [processor.observation_layout(env.observation_space) for env in environments]
        self._action_layouts = [processor.action_layout(env.action_space) for env in environments]
        layouts = self._observation_layouts, self._action_layouts
        self._context = RolloutContext(*layouts, self.context_length, processor.image_size, device)
        devices = [acting_device(layer) for layer in model.backbone.layers]
        self._cache, self._next_cache = (
            RolloutCache.allocate(model.config, len(self), capacity, model.dtype, devices)
            for capacity in (self.context_length, self.context_length // 2)
        )
        self._last_actions = np.zeros((len(self), max(layout.num_slots for layout in layouts[1])), np.float32)
        self._first_rewards: np.ndarray | None = None
        self._rewards_differ = np.zeros(len(self), bool)
        self._noise_BAK: torch.Tensor | None = None
        self._remembered: tuple[Sequence[float], Sequence[bool], Sequence[bool]] | None = None
        self._describe()

    def __len__(self) -> int:
        return len(self._action_layouts)

    def act(
        self,
        observations: Sequence[Any],
        rewards: Sequence[float] | None = None,
        terminated: Sequence[bool] | None = None,
        truncated: Sequence[bool] | None = None,
    ) -> list[Any]:
        """Choose an action for every environment: the most likely bins that its action space allows, or drawn ones.

        Args:
            observations: one observation per environment. After the end of an episode, that of the reset.
            rewards, terminated, truncated: what the last actions brought; left out at the first call only, before which
                there was none or ``remember`` was told.

        Returns:
            One action per environment, a value of its action space.

        Raises:
            InvalidValueError: an observation cannot be read (not a number, outside its table).
        """
        self.observe(observations, rewards, terminated, truncated)
        return self._take(self._slots(self._choose(*self._forward())))

    def observe(
        self,
        observations: Sequence[Any],
        rewards: Sequence[float] | None = None,
        terminated: Sequence[bool] | None = None,
        truncated: Sequence[bool] | None = None,
    ) -> None:
        """Append a transition of every environment to the context: the first half of ``act``, whose arguments these are.

        ``joint_ldm.JointStep`` is the second half, for several policies at once.

        Raises:
            InvalidValueError: an observation cannot be read; the context is as it was.
        """
        outcome = self._remembered
        if rewards is not None and terminated is not None and truncated is not None:
            outcome = rewards, terminated, truncated
        if (outcome is None) != (self._context.length == 0):
            raise ValueError("rewards, terminated and truncated belong to every call but the first")
        # Read all observations before anything is changed, so that a bad one leaves the rollout as it was.
        flat = [layout.flatten(value) for layout, value in zip(self._observation_layouts, observations, strict=True)]
        if self.num_reads:
            self._read_ahead()
        if self._context.length == self.context_length:
            self._forget()
        self._context.append(flat, self._last_actions, outcome)
        self._remembered = None
        self._compare(rewards)

    @property
    def num_reads(self) -> int:
        """Transitions, of all environments, that are read a second time before the next one."""
        waiting = self._context.length - self._read_so_far
        is_due = waiting * len(self) >= _READ_AHEAD or self._context.length == self.context_length
        return waiting * len(self) if waiting > 0 and is_due else 0

    def remember(self, recorded: Transitions) -> None:
        """Begin with recorded transitions in the context of every environment, as if it had just seen them.

        Demonstrations are a prompt: a model that learned from contexts reads from them what is to be done. They count as
        any transitions do, and are forgotten when the context is full.

        Args:
            recorded: of one stream, slots of the spaces that all environments of this policy have; the last of them ends an
                episode. Of more than a full context less one, the last are kept.

        Raises:
            ValueError: the rollout has begun, the environments' spaces differ, or the slots are not those of the spaces.
        """
        if self._context.length:
            raise ValueError(
                "recorded transitions come before the first action: call remember earlier, or make a policy"
            )
        observed, acted = self._observation_layouts[0], self._action_layouts[0]
        widths = recorded.observations.shape[1], recorded.actions.shape[1]
        if widths != (observed.num_slots, acted.num_slots) or (recorded.images is None) != (observed.image is None):
            raise ValueError(f"the recorded slots, {widths}, are not those of the environments' spaces")
        if any(layout is not observed for layout in self._observation_layouts) or any(
            layout is not acted for layout in self._action_layouts
        ):
            raise ValueError("environments with different spaces cannot begin with the same recorded transitions")
        recorded = recorded[-(self.context_length - 1) :]
        rows = len(self)
        for step in range(len(recorded)):
            image = None if recorded.images is None else recorded.images[step]
            self._context.append([(recorded.observations[step], image)] * rows, self._last_actions, self._remembered)
            self._last_actions = np.repeat(recorded.actions[step : step + 1], rows, 0)
            ends = (recorded.rewards[step], recorded.terminated[step], recorded.truncated[step])
            self._remembered = tuple([value] * rows for value in ends)  # type: ignore[assignment]
            self._compare([float(recorded.rewards[step])] * rows)
        self._read(self._cache, 0, len(recorded))

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these environments only, in this order."""
        self._observation_layouts = [self._observation_layouts[row] for row in rows]
        self._action_layouts = [self._action_layouts[row] for row in rows]
        self._context.select(rows, self._observation_layouts, self._action_layouts)
        chosen = torch.as_tensor(rows, dtype=torch.int64, device=self._device)
        self._cache, self._next_cache = self._cache.select(chosen), self._next_cache.select(chosen)
        self._describe()
        self._last_actions = self._last_actions[list(rows), : self._low.shape[1]]
        self._rewards_differ, self._noise_BAK = self._rewards_differ[list(rows)], None
        self._first_rewards = None if self._first_rewards is None else self._first_rewards[list(rows)]

    def _describe(self) -> None:
        """Collect what is the same at every step."""
        described = self.processor.describe_rows(self._observation_layouts, self._action_layouts)
        self._rows = {name: tensor.to(self._device) for name, tensor in described.items()}
        self._action_kinds, self._action_bounds = described["action_kinds"], described["action_bounds"]
        # The bounds in their own precision; what is not continuous has none.
        self._low, self._high = np.full((2, *self._action_kinds.shape), [[[-np.inf]], [[np.inf]]])
        for row, layout in enumerate(self._action_layouts):
            continuous = np.flatnonzero(layout.kinds == CONTINUOUS)
            self._low[row, continuous], self._high[row, continuous] = layout.low[continuous], layout.high[continuous]
        self._every_row = self._row_inputs(slice(None))
        self._compiled: CompiledStep | None = None

    def _row_inputs(self, rows: slice) -> dict[str, Any]:
        """What the model must know of some rows."""
        inputs: dict[str, Any] = {name: tensor[rows] for name, tensor in self._rows.items()}
        inputs["row_groups"] = group_rows(inputs["observation_kinds"], inputs["action_kinds"])
        images = [index for index, row in enumerate(range(len(self))[rows]) if row in self._context.image_rows]
        inputs["image_rows"] = torch.tensor(images, dtype=torch.int64, device=self._device) if images else None
        return inputs

    @property
    def _read_so_far(self) -> int:
        """Where in the context the second reading continues: it begins with the newer half."""
        return self.context_length - self.context_length // 2 + self._next_cache.get_seq_length()

    def _read_ahead(self) -> None:
        """Read what there is of the newer half into the cache that takes over."""
        self._read(self._next_cache, self._read_so_far, self._context.length)

    def _forget(self) -> None:
        """Forget the older half of a full context; the newer one has been read."""
        self._context.forget_older_half()
        self._cache.take(self._next_cache)

    @torch.inference_mode()
    def _read(self, cache: "RolloutCache", first: int, stop: int) -> None:
        """Append transitions of the context to a cache; what an empty one begins with has nothing before it."""
        before, count = cache.get_seq_length(), stop - first
        # Experts make a feed-forward layer, and what is in between, so many times wider.
        rows_at_once = max(1, _TOKENS_AT_ONCE // (count * (1 + self.model.config.num_experts)))
        for start in range(0, len(self), rows_at_once):
            rows = slice(start, start + rows_at_once)
            inputs = self._context.inputs(first, stop, rows)
            if not before:
                inputs["previous_dones"][:, 0] = START
            decode(self.model, inputs, self._row_inputs(rows), cache.part(rows))
        cache.show(before + count)

    @torch.inference_mode()
    def _forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the newest transition: logits (B, A, K) and the bins (B, A) that are chosen."""
        length, inputs = self._context.length, self._context.newest()
        if not self._compile:
            return decode(self.model, inputs, self._every_row, self._cache)
        if self._compiled is None:
            self._compiled = CompiledStep(self.model, inputs, self._every_row, self._cache)
        chosen = self._compiled(length - 1, inputs)
        self._cache.show(length)
        return chosen

    def _compare(self, rewards: Sequence[float] | None) -> None:
        """Note in which rows a reward differs from the first one."""
        if rewards is None:
            return
        if self._first_rewards is None:
            self._first_rewards = np.array(rewards, np.float64)
        self._rewards_differ |= np.asarray(rewards, np.float64) != self._first_rewards

    def _temperatures(self) -> np.ndarray:
        """Temperature of each row, of shape (B,)."""
        exploring = self.temperature if self.exploration_temperature is None else self.exploration_temperature
        return np.where(self._rewards_differ, self.temperature, exploring)

    def _choose(self, logits_BAK: torch.Tensor, bins_BA: torch.Tensor) -> torch.Tensor:
        """The bins (B, A) to act by, given logits and the most likely bins: these, or drawn ones."""
        temperatures_B = self._temperatures()
        return self._drawn(logits_BAK, bins_BA, temperatures_B) if temperatures_B.any() else bins_BA

    def _slots(self, bins_BA: torch.Tensor) -> np.ndarray:
        """The action slots that bins stand for, float32 of shape (B, A)."""
        code = ActionCode.of(self.processor)
        return code.decode(bins_BA.cpu(), self._action_kinds, self._action_bounds).numpy()

    def _take(self, slots_BA: np.ndarray) -> list[Any]:
        """Act by these slots: the actions, values of the action spaces, which the next transition says were taken."""
        # Once more in the bounds' own precision: rounded to float32 they may lie outside themselves.
        self._last_actions = np.clip(slots_BA, self._low, self._high).astype(np.float32)
        return [
            layout.unflatten(slots[: layout.num_slots])
            for layout, slots in zip(self._action_layouts, self._last_actions, strict=True)
        ]

    def _drawn(self, logits_BAK: torch.Tensor, bins_BA: torch.Tensor, temperatures_B: np.ndarray) -> torch.Tensor:
        """Bins (B, A), drawn by their likelihood; those that an action space does not allow have none.

        Rows of temperature 0 keep theirs.
        """
        device = logits_BAK.device
        draws_B = torch.as_tensor(temperatures_B > 0, device=device)
        divisors_B = torch.as_tensor(
            np.where(temperatures_B > 0, temperatures_B, 1.0), dtype=torch.float32, device=device
        )
        # The largest of logits and Gumbel noise is a draw from their softmax; the same noise is the same draw.
        noise_BAK = -torch.empty_like(logits_BAK, dtype=torch.float32).exponential_(generator=self._generator).log()
        if self.exploration_temperature is not None:
            if self._noise_BAK is not None:
                repeats_B = torch.rand(len(draws_B), generator=self._generator, device=device) < _REPEATED
                repeats_B &= torch.as_tensor(~self._rewards_differ, device=device)
                noise_BAK = torch.where(repeats_B[:, None, None], self._noise_BAK, noise_BAK)
            self._noise_BAK = noise_BAK
        drawn_BA = (logits_BAK.float() / divisors_B[:, None, None] + noise_BAK).argmax(-1)
        return torch.where(draws_B[:, None], drawn_BA, bins_BA)


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
