"""Recordings of a run's slices as one: the streams of the second follow those of the first, and so on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_hf.dataset_builder.reference.recording import Recording
from ldm_hf.env_registry.worker.space_tree import at, join, leaves
from ldm_hf.modeling.spaces_ldm import space_to_json


class JoinedRecording:
    """Several recordings of the same number of sub-environments, read as one of more streams.

    Attributes:
        lengths, rewards, terminated, truncated, terminals: as of ``Recording``.
        resets: of each stream, rows before which it was reset.
    """

    def __init__(self, parts: Sequence[Recording], observation: Any) -> None:
        """Join recordings; ``observation`` is the space of one sub-environment."""
        self._parts = parts
        self._space = space_to_json(observation)
        self._width = parts[0].num_streams
        self.lengths = np.concatenate([part.lengths for part in parts])
        self.rewards = self._side_by_side([part.rewards for part in parts])
        self.terminated = self._side_by_side([part.terminated for part in parts])
        self.truncated = self._side_by_side([part.truncated for part in parts])
        self.terminals = [
            (stream + number * self._width, row) for number, part in enumerate(parts) for stream, row in part.terminals
        ]
        self.resets = {
            number * self._width + stream: part.resets
            for number, part in enumerate(parts)
            for stream in range(self._width)
        }

    @property
    def num_streams(self) -> int:
        """Number of streams."""
        return len(self.lengths)

    @property
    def num_episodes(self) -> int:
        """Number of episodes that ended or were broken off."""
        return sum(part.num_episodes for part in self._parts)

    def observation_batch(self, stream: int, start: int, stop: int) -> Any:
        """As of ``Recording``."""
        return self._parts[stream // self._width].observation_batch(stream % self._width, start, stop)

    def action_batch(self, stream: int, start: int, stop: int) -> Any:
        """As of ``Recording``."""
        return self._parts[stream // self._width].action_batch(stream % self._width, start, stop)

    def terminal_batch(self, start: int, stop: int) -> Any:
        """As of ``Recording``."""
        pieces, first = [], 0
        for part in self._parts:
            last = first + len(part.terminals)
            if max(start, first) < min(stop, last):
                pieces.append(part.terminal_batch(max(start, first) - first, min(stop, last) - first))
            first = last
        return self._concatenated(pieces)

    def close(self) -> None:
        """Close the files."""
        for part in self._parts:
            part.close()

    def _concatenated(self, batches: Sequence[Any]) -> Any:
        values = []
        for path, _ in leaves(self._space):
            found = [at(batch, path) for batch in batches]
            values.append(None if any(part is None for part in found) else np.concatenate(found))
        return join(self._space, iter(values))

    @staticmethod
    def _side_by_side(columns: Sequence[np.ndarray]) -> np.ndarray:
        rows = max(len(column) for column in columns)
        return np.concatenate([np.pad(column, ((0, rows - len(column)), (0, 0))) for column in columns], axis=1)
