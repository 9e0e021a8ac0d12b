"""Transitions as they happened: what datasets store and the processor reads, in numpy alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Transitions:
    """T consecutive transitions of one stream of one environment, as they are stored on disk: nothing is shifted.

    Row t holds what was observed, the action taken there, and what that action brought.

    Attributes:
        observations: slots, float32 of shape (T, S).
        images: uint8 of shape (T, image_size, image_size, 3), or None.
        actions: slots of the action that was taken, float32 of shape (T, A).
        rewards: float32 of shape (T,).
        terminated, truncated: bool of shape (T,).
        reference_actions: slots of the reference action, the training target, float32 of shape (T, A); None in rollout.
    """

    observations: np.ndarray
    images: np.ndarray | None
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    reference_actions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    def __getitem__(self, rows: slice) -> "Transitions":
        parts = {name: None if part is None else part[rows] for name, part in vars(self).items()}
        return Transitions(**parts)  # type: ignore[arg-type]

    @classmethod
    def joined(cls, parts: Sequence["Transitions"]) -> "Transitions":
        """One or more pieces, one after another."""
        columns = [[vars(part)[name] for part in parts] for name in vars(parts[0])]
        return cls(*(None if values[0] is None else np.concatenate(values) for values in columns))  # type: ignore[arg-type]
