"""What a step of many environments gave, and how it is read from their workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldm_hf.env_registry.remote.infos import Columns, check
from ldm_hf.env_registry.remote.worker_batch import WorkerBatch
from ldm_hf.env_registry.worker.decoding import decode
from ldm_hf.env_registry.worker.space_tree import array_format, leaves


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


class StepLayout:
    """Where what each worker gives has its place in the step of all environments.

    Args:
        observation_space: of one environment, as JSON.
        slices: the environments of each worker.
    """

    def __init__(self, observation_space: dict[str, Any], slices: Sequence[slice]) -> None:
        self._slices, self._num_envs = slices, slices[-1].stop
        self._leaves = [leaf for _, leaf in leaves(observation_space)]
        self._formats = [array_format(leaf) for leaf in self._leaves]

    def empty(self) -> Step:
        """A step that nothing was read into."""
        none: list[tuple[Columns | None, int]] = [(None, part.stop - part.start) for part in self._slices]
        ends = np.empty((2, self._num_envs), bool)
        return Step(self.room(), [], np.empty(self._num_envs), ends, none, list(none))

    def room(self) -> list[Any]:
        """Space for the observations of all environments."""
        return [
            [None] * self._num_envs if found is None else np.empty((self._num_envs, *found[0]), found[1])
            for found in self._formats
        ]

    def read(self, index: int, worker: WorkerBatch, answer: dict[str, Any], step: Step) -> None:
        """Copy what a worker has answered; any exception says that it is not understood."""
        part, shared = self._slices[index], worker.shared
        worker.check_number()
        self.copy(shared.observations, answer.get("inline"), part, step.observations)
        step.rewards[part] = shared.rewards
        step.ends[:, part] = shared.ends.T
        size = part.stop - part.start
        check(answer.get("infos"), size)
        step.infos[index] = answer.get("infos"), size
        if "final_infos" in answer:
            step.final_observations = step.final_observations or self.room()
            self.copy(shared.final_observations, answer.get("final_inline"), part, step.final_observations)
            check(answer["final_infos"], size)
            step.final_infos[index] = answer["final_infos"], size
        worker.check_number()  # nothing was written to it meanwhile

    def copy(self, arrays: Sequence[np.ndarray | None], inline: Any, part: slice, room: list[Any]) -> None:
        """Copy observations of some environments: arrays, or the values of their leaves that have no fixed size."""
        rows = [list(row) if row else [] for row in inline or ()]
        if any(array is None for array in arrays) and len(rows) != part.stop - part.start:
            raise ValueError(f"observations of {len(rows)} environments, not {part.stop - part.start}")
        for leaf, array, values in zip(self._leaves, arrays, room, strict=True):
            values[part] = array if array is not None else [decode(leaf, row.pop(0)) if row else None for row in rows]


def _rows(values: Any, rows: np.ndarray) -> Any:
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
