"""LDMPolicy: a rollout of a Large Decision Model, with everything that it remembers.

Shapes: B environments, N the context length, S observation slots, A action slots (of the widest environment).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .cache_ldm import RolloutCache
from .processing_ldm import NOT_DONE, START, TERMINATED, TRUNCATED, LDMProcessor


class LDMPolicy:
    """Acts in a batch of environments, which may be of different kinds, one transition a step.

    The context starts empty and is kept across episodes. A key-value cache makes a step cost one token; when the context
    is full, its newer half is read again from the raw transitions and the rollout goes on from there.

    Args:
        model: an ``LDMModel``.
        processor: its ``LDMProcessor``.
        environments: what to act in, one a row: anything with ``observation_space`` and ``action_space`` (Gymnasium
            spaces, or their JSON).
        context_length: most transitions to remember; by default, and at most, what the model was trained for.

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
        self, model: Any, processor: LDMProcessor, environments: Sequence[Any], context_length: int | None = None
    ):
        limit = model.config.max_position_embeddings
        self.context_length = limit if context_length is None else context_length
        if not 2 <= self.context_length <= limit:
            raise ValueError(f"context_length must be from 2 to {limit} (the model's), got {context_length}")
        self.model = model.eval()
        self.processor = processor
        self._observation_layouts = [processor.observation_layout(env.observation_space) for env in environments]
        self._action_layouts = [processor.action_layout(env.action_space) for env in environments]
        rows = processor.describe_rows(self._observation_layouts, self._action_layouts)
        self._rows = {name: tensor.to(model.device) for name, tensor in rows.items()}
        self._history = self._allocate()
        self._last_actions = np.zeros((len(environments), rows["action_kinds"].shape[1]), np.float32)
        self._length = 0
        self._cache = RolloutCache(model.config.num_hidden_layers, self.context_length)

    def __len__(self) -> int:
        return len(self._action_layouts)

    def act(
        self,
        observations: Sequence[Any],
        rewards: Sequence[float] | None = None,
        terminated: Sequence[bool] | None = None,
        truncated: Sequence[bool] | None = None,
    ) -> list[Any]:
        """Choose an action for every environment: the most likely bins that its action space allows.

        Args:
            observations: one observation an environment. After the end of an episode, that of the reset.
            rewards, terminated, truncated: what the last actions brought; left out at the first call only.

        Returns:
            One action an environment, a value of its action space.

        Raises:
            InvalidValueError: an observation cannot be read (not a number, outside its table).
        """
        if (rewards is None) != (self._length == 0):
            raise ValueError("rewards, terminated and truncated belong to every call but the first")
        # Read all observations before anything is changed, so that a bad one leaves the rollout as it was.
        flat = [layout.flatten(value) for layout, value in zip(self._observation_layouts, observations, strict=True)]
        position = self._make_room()
        self._write(position, flat, rewards, terminated, truncated)
        logits_BAK = self._forward(position)
        bins_BA = logits_BAK.argmax(-1).cpu().numpy()
        actions = []
        for row, layout in enumerate(self._action_layouts):
            action, slots = self.processor.decode_action(layout, bins_BA[row])
            self._last_actions[row, : layout.num_slots] = slots
            actions.append(action)
        return actions

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these environments only, in this order."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.model.device)
        self._observation_layouts = [self._observation_layouts[row] for row in rows]
        self._action_layouts = [self._action_layouts[row] for row in rows]
        self._rows = {name: tensor[index] for name, tensor in self._rows.items()}
        self._history = {name: tensor[index] for name, tensor in self._history.items()}
        self._last_actions = self._last_actions[list(rows)]
        self._cache.batch_select_indices(index)

    def _allocate(self) -> dict[str, torch.Tensor]:
        """The raw transitions of the context, token-aligned, B x N of each."""
        shape = (len(self), self.context_length)
        num_observations, num_actions = (self._rows[name].shape[1] for name in ("observation_kinds", "action_kinds"))
        history = {
            "observations": torch.zeros(*shape, num_observations),
            "previous_actions": torch.zeros(*shape, num_actions),
            "previous_rewards": torch.zeros(shape),
            "previous_dones": torch.zeros(shape, dtype=torch.int64),
        }
        if any(layout.image is not None for layout in self._observation_layouts):
            side = self.processor.image_size
            history["images"] = torch.zeros(*shape, 3, side, side, dtype=torch.uint8)
        return {name: tensor.to(self.model.device) for name, tensor in history.items()}

    def _make_room(self) -> int:
        """Where the next transition goes; in a full context, its newer half first moves to the front."""
        if self._length == self.context_length:
            kept = self.context_length // 2
            for tensor in self._history.values():
                tensor[:, :kept] = tensor[:, -kept:].clone()
            # As in training, the first transition of a context has nothing before it.
            self._history["previous_dones"][:, 0] = START
            self._length = kept
            self._cache.reset()
        return self._length

    def _write(
        self,
        position: int,
        flat: Sequence[tuple[np.ndarray, np.ndarray | None]],
        rewards: Sequence[float] | None,
        terminated: Sequence[bool] | None,
        truncated: Sequence[bool] | None,
    ) -> None:
        if rewards is None or terminated is None or truncated is None:
            done, earned = np.full(len(self), START), np.zeros(len(self), np.float32)
        else:
            done = np.where(terminated, TERMINATED, np.where(truncated, TRUNCATED, NOT_DONE))
            earned = np.asarray(rewards, np.float32)
        observations = np.zeros((len(self), self._history["observations"].shape[2]), np.float32)
        for row, (slots, image) in enumerate(flat):
            observations[row, : len(slots)] = slots
            if image is not None:
                self._history["images"][row, position] = torch.from_numpy(image).permute(2, 0, 1)
        self._history["observations"][:, position] = torch.from_numpy(observations)
        self._history["previous_actions"][:, position] = torch.from_numpy(self._last_actions)
        self._history["previous_rewards"][:, position] = torch.from_numpy(earned)
        self._history["previous_dones"][:, position] = torch.from_numpy(done.astype(np.int64))

    @torch.inference_mode()
    def _forward(self, position: int) -> torch.Tensor:
        """Logits (B, A, K) at a position; reads only the transitions that the cache does not hold."""
        first = self._cache.get_seq_length()
        inputs = {name: tensor[:, first : position + 1] for name, tensor in self._history.items()}
        if "images" in inputs:
            with_image = [row for row, layout in enumerate(self._observation_layouts) if layout.image is not None]
            inputs["image_rows"] = torch.tensor(with_image, dtype=torch.int64, device=self.model.device)
            inputs["images"] = inputs["images"][inputs["image_rows"]]
        output = self.model(**inputs, **self._rows, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._length = position + 1
        return output.logits[:, 0]
