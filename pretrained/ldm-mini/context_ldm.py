"""The raw transitions of a rollout's context, as the model reads them: token t holds the outcome of t-1.

Shapes: B rows, R of them with images, N the context length, S observation slots, A action slots of the widest row.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

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
