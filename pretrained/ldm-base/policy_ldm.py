"""Rollout: ``LDMPolicy`` acts in environments, one transition per step.

It keeps the raw transitions of its context and their keys and values (``memory_ldm``), so that a step costs one token. On a
CPU it computes with packed weights; with ``compile`` a step is one graph (``steps_ldm``).

Shapes: B rows, one per environment, R of them with images; N the context length; S observation slots, A action slots of the
widest row; K the number of bins; keys and values of a layer are (B, heads, N, head size).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .memory_ldm import RolloutCache, RolloutContext
from .packing_ldm import group_rows
from .processing_ldm import START, LDMProcessor
from .quantization_ldm import ActionCode
from .spaces_ldm import CONTINUOUS, Transitions
from .steps_ldm import CompiledStep, acting_device, decode, is_offloaded, packed

_TOKENS_AT_ONCE = 4096
"""Transitions that are read at a time when a context is rebuilt: what is in between takes memory in proportion."""

_READ_AHEAD = 256
"""Transitions of the newer half of a context that are read at a time, before it takes over: a pass of fewer takes nearly as
long where weights have to be read from memory, and one of more holds up the step before which it comes."""

_REPEATED = 0.5
"""Chance that a row that explores repeats its last draw."""


class LDMPolicy:
    """Acts in a batch of environments, which may be of different kinds, one transition per step.

    The context starts empty and is kept across episodes. A key-value cache makes a step cost one token. When the context is
    full, its older half is forgotten, and the rollout continues as if it had begun with the newer one. That half is read a
    second time, from the raw transitions and while it is being filled, so that no step has to wait for all of it; how it
    is divided changes only the order of sums.

    A policy shares some weights with its model and copies others: after the model was trained further, make a new one.

    Args:
        model: an ``LDMModel``.
        processor: its ``LDMProcessor``.
        environments: what to act in, one per row: anything with ``observation_space`` and ``action_space`` (Gymnasium
            spaces, or their JSON).
        context_length: most transitions to remember; by default, and at most, the model's ``max_position_embeddings``. Give
            the ``context_length`` of the training where that was shorter: at later positions nothing was learned.
        compile: whether steps are one graph, made by ``torch.compile`` at the first step and after each ``select``, which
            takes a minute; with CUDA it is replayed without Python. On a CPU steps are as fast without.
        temperature: 0 takes the most likely bins. Otherwise bins are sampled, from the logits divided by it.
        exploration_temperature: the same in environments all of whose rewards so far were alike: a context that says nothing
            of what is good has to look around first, and every second draw there is that of the step before, which gets
            further than drawing each. By default ``temperature`` there too. What it is worth is in docs/in_context.md.
        seed: of what is sampled.

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
        """Choose an action for every environment: the most likely bins that its action space allows, or sampled ones.

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
        # Experts make a feed-forward layer, and what is in between, as many times wider as there are of them.
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
        """The bins (B, A) to act by, given logits and the most likely bins: these, or sampled ones."""
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
        """Bins (B, A), sampled by their likelihood; those that an action space does not allow have none.

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
