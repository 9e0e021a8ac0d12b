"""LDMPolicy: a rollout of a Large Decision Model, with everything that it remembers.

Shapes: B environments, A action slots (of the widest environment), K the number of bins.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .cache_ldm import RolloutCache, acting_device, is_offloaded
from .compiled_ldm import CompiledStep, decode
from .context_ldm import RolloutContext
from .packed_ldm import packed
from .processing_ldm import LDMProcessor, rows_by_width
from .quantization_ldm import ActionCode
from .spaces_ldm import CONTINUOUS

_TOKENS_AT_ONCE = 4096
"""Transitions that are read at a time when a context is rebuilt: what is in between takes memory for so many."""


class LDMPolicy:
    """Acts in a batch of environments, which may be of different kinds, one transition a step.

    The context starts empty and is kept across episodes. A key-value cache makes a step cost one token; when the context
    is full, its newer half is read again from the raw transitions and the rollout goes on from there.

    The weights are those of the moment: a policy does not notice that its model is trained further.

    Args:
        model: an ``LDMModel``.
        processor: its ``LDMProcessor``.
        environments: what to act in, one a row: anything with ``observation_space`` and ``action_space`` (Gymnasium
            spaces, or their JSON).
        context_length: most transitions to remember; by default, and at most, what the model was trained for.
        compile: whether steps are one graph, made by ``torch.compile`` at the first step and after each ``select``, which
            takes a minute; with CUDA it is replayed without Python. On a CPU steps are as fast without.
        temperature: 0 takes the most likely bins. Otherwise bins are drawn, from the logits divided by it.
        seed: of what is drawn.

    Raises:
        UnsupportedSpaceError: an environment does not fit the model.

    Example:
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
    ):
        limit = model.config.max_position_embeddings
        self.context_length = limit if context_length is None else context_length
        if not 2 <= self.context_length <= limit:
            raise ValueError(f"context_length must be from 2 to {limit} (the model's), got {context_length}")
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        self._temperature = temperature
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
        self._cache = RolloutCache.allocate(model.config, len(self), self.context_length, model.dtype, devices)
        self._last_actions = np.zeros((len(self), max(layout.num_slots for layout in layouts[1])), np.float32)
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
            observations: one observation an environment. After the end of an episode, that of the reset.
            rewards, terminated, truncated: what the last actions brought; left out at the first call only.

        Returns:
            One action an environment, a value of its action space.

        Raises:
            InvalidValueError: an observation cannot be read (not a number, outside its table).
        """
        outcome = None
        if rewards is not None and terminated is not None and truncated is not None:
            outcome = rewards, terminated, truncated
        if (outcome is None) != (self._context.length == 0):
            raise ValueError("rewards, terminated and truncated belong to every call but the first")
        # Read all observations before anything is changed, so that a bad one leaves the rollout as it was.
        flat = [layout.flatten(value) for layout, value in zip(self._observation_layouts, observations, strict=True)]
        if self._context.length == self.context_length:
            self._rebuild()
        self._context.append(flat, self._last_actions, outcome)
        logits_BAK, bins_BA = self._forward()
        if self._temperature:
            bins_BA = self._drawn(logits_BAK)
        self._last_actions = self._slots(bins_BA.cpu())
        return [
            layout.unflatten(slots[: layout.num_slots])
            for layout, slots in zip(self._action_layouts, self._last_actions, strict=True)
        ]

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these environments only, in this order."""
        self._observation_layouts = [self._observation_layouts[row] for row in rows]
        self._action_layouts = [self._action_layouts[row] for row in rows]
        self._context.select(rows, self._observation_layouts, self._action_layouts)
        self._cache = self._cache.select(torch.as_tensor(rows, dtype=torch.int64, device=self._device))
        self._describe()
        self._last_actions = self._last_actions[list(rows), : self._low.shape[1]]

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
        inputs["row_groups"] = tuple(rows_by_width(inputs[kinds]) for kinds in ("observation_kinds", "action_kinds"))
        images = [index for index, row in enumerate(range(len(self))[rows]) if row in self._context.image_rows]
        inputs["image_rows"] = torch.tensor(images, dtype=torch.int64, device=self._device) if images else None
        return inputs

    def _rebuild(self) -> None:
        """Forget the older half of the context and read the newer half again, a few rows at a time."""
        self._context.forget_older_half()
        self._cache.show(0)
        self._read(self._context.length)

    @torch.inference_mode()
    def _read(self, length: int) -> None:
        """Fill the cache with the first ``length`` transitions."""
        # Experts make a feed-forward layer, and what is in between, so many times wider.
        rows_at_once = max(1, _TOKENS_AT_ONCE // (length * (1 + self.model.config.num_experts)))
        for start in range(0, len(self), rows_at_once):
            rows = slice(start, start + rows_at_once)
            decode(self.model, self._context.inputs(0, length, rows), self._row_inputs(rows), self._cache.part(rows))
        self._cache.show(length)

    @torch.inference_mode()
    def _forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the newest transition: logits (B, A, K) and the bins (B, A) that are chosen."""
        length = self._context.length
        inputs = self._context.inputs(length - 1, length)
        if not self._compile:
            return decode(self.model, inputs, self._every_row, self._cache)
        if self._compiled is None:
            self._compiled = CompiledStep(self.model, inputs, self._every_row, self._cache)
        chosen = self._compiled(length - 1, inputs)
        self._cache.show(length)
        return chosen

    def _drawn(self, logits_BAK: torch.Tensor) -> torch.Tensor:
        """Bins (B, A), drawn by their likelihood; those that an action space does not allow have none."""
        likelihood_BAK = (logits_BAK.float() / self._temperature).softmax(-1)
        return torch.multinomial(likelihood_BAK.flatten(0, 1), 1, generator=self._generator).view(logits_BAK.shape[:2])

    def _slots(self, bins_BA: torch.Tensor) -> np.ndarray:
        """The action slots that bins stand for, float32 of shape (B, A)."""
        code = ActionCode.of(self.processor)
        slots_BA = code.decode(bins_BA, self._action_kinds, self._action_bounds).numpy()
        # Once more in the bounds' own precision: rounded to float32 they may lie outside themselves.
        return np.clip(slots_BA, self._low, self._high).astype(np.float32)
