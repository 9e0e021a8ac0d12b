"""What a step of many environments gave."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldm_hf.env_registry.remote.infos import Columns


@dataclass
class Step:
    """What a step or a reset gave, copied out of the shared memory.

    Attributes:
        observations: a leaf of the space each: an array of shape (num_envs, ...), or a list where values have no fixed size.
        final_observations: the same, of those environments whose episode ended in a step that already reset them; empty
            if there is none.
        rewards: float64 of shape (num_envs,).
        ends: terminated and truncated, bool of shape (2, num_envs).
        infos, final_infos: of each worker: infos by key, number of environments.
    """

    observations: list[Any]
    final_observations: list[Any]
    rewards: np.ndarray
    ends: np.ndarray
    infos: list[tuple[Columns | None, int]]
    final_infos: list[tuple[Columns | None, int]]

    def part(self, rows: np.ndarray, workers: Sequence[int]) -> "Step":
        """The same of some environments, which are those of these workers."""
        return Step(
            [_rows(values, rows) for values in self.observations],
            [_rows(values, rows) for values in self.final_observations],
            self.rewards[rows],
            self.ends[:, rows],
            [self.infos[index] for index in workers],
            [self.final_infos[index] for index in workers],
        )


def _rows(values: Any, rows: np.ndarray) -> Any:
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
