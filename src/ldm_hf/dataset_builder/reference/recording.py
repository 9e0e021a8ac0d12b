"""What a run's environments gave and were given, raw, on disk."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa

from ldm_hf.env_registry.worker.space_tree import array_format, at, join, leaves
from ldm_hf.errors import DatasetFormatError, StorageError
from ldm_hf.modeling.spaces_ldm import space_to_json

_BLOCK_BYTES = 2**25  # of one array that wait in memory before they are compressed
_BLOCK_ROWS = 4096
_CODEC = "zstd"
_LEVEL = 1
_FIRST_ROWS = 1024
_INDEX, _NUMBERS = "index.json", "numbers.npz"  # of a recording that was saved


class BlockFile:
    """An array of shape (T, B, ...) that grows row by row, kept on disk in compressed blocks of one column each."""

    def __init__(
        self, path: Path, dtype: Any, num_columns: int, item: tuple[int, ...], saved: dict[str, Any] | None = None
    ) -> None:
        """Make the file, or open the one of which ``save`` gave the index; it is gone with its folder."""
        row_bytes = max(1, num_columns * int(np.prod(item)) * np.dtype(dtype).itemsize)
        rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // row_bytes))
        self._file = path.open("w+b" if saved is None else "rb")
        self._block = np.empty((rows, num_columns, *item), dtype)
        self._shape = (num_columns, *item)
        self._blocks: list[list[tuple[int, int]]] = []  # of each block: where its columns lie in the file
        self._codec = pa.Codec(_CODEC, compression_level=_LEVEL)
        self.length = 0
        if saved is not None:
            self._blocks = [[(offset, size) for offset, size in block] for block in saved["blocks"]]
            self.length = saved["length"]
            if rest := self.length % rows:
                last = self._blocks.pop()
                for column in range(num_columns):
                    self._block[:rest, column] = self._unpack(last[column], rest)

    def save(self) -> dict[str, Any]:
        """Write what waits in memory; returns the index that opens the file again. Nothing can be added afterwards."""
        blocks = list(self._blocks)
        if rest := self.length % len(self._block):
            blocks.append([self._write(self._block[:rest, column]) for column in range(self._block.shape[1])])
        self._file.flush()
        return {"length": self.length, "blocks": blocks}

    def put(self, row: Any) -> None:
        """Say what the next row of shape (B, ...) is; it is not there before ``advance``."""
        row = np.asarray(row)
        if row.shape != self._shape:  # a scalar is often given with shape (1,), and the other way round
            row = row.reshape(self._shape)
        self._block[self.length % len(self._block)] = row

    def advance(self) -> None:
        """Add the row that was put."""
        self.length += 1
        if self.length % len(self._block) == 0:
            self._blocks.append([self._write(self._block[:, column]) for column in range(self._block.shape[1])])

    def read(self, column: int, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of one column, of shape (stop - start, ...)."""
        rows = len(self._block)
        parts = []
        for block in range(start // rows, -(-stop // rows)):
            first, last = max(start - block * rows, 0), min(stop - block * rows, rows)
            whole = self._read(block, column) if block < len(self._blocks) else self._block[:, column]
            parts.append(whole[first:last])
        return np.concatenate(parts) if parts else self._block[:0, column]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, values: np.ndarray) -> tuple[int, int]:
        offset = self._file.seek(0, 2)
        return offset, self._file.write(self._codec.compress(np.ascontiguousarray(values)))

    def _read(self, block: int, column: int) -> np.ndarray:
        return self._unpack(self._blocks[block][column], len(self._block))

    def _unpack(self, place: tuple[int, int], rows: int) -> np.ndarray:
        offset, size = place
        self._file.seek(offset)
        data = self._codec.decompress(self._file.read(size), self._block[:rows, 0].nbytes)
        return np.frombuffer(data, self._block.dtype).reshape(rows, *self._block.shape[2:])


class ValueFile:
    """Values of a space on disk: one ``BlockFile`` a leaf. Leaves of no fixed size, such as texts, are left out."""

    def __init__(
        self,
        folder: Path,
        name: str,
        space: gymnasium.Space,
        num_columns: int,
        saved: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """Make the files in an existing folder, or open those of which ``save`` gave the indices."""
        self._space = space_to_json(space)
        self._leaves: list[BlockFile | None] = []
        self._files: list[tuple[tuple[str | int, ...], BlockFile]] = []
        self._names: list[str] = []
        self.row_bytes = 0
        for number, (path, leaf) in enumerate(leaves(self._space)):
            found = array_format(leaf)
            path_of = folder / f"{name}-{number}"
            index = None if saved is None or found is None else saved[path_of.name]
            file = None if found is None else BlockFile(path_of, found[1], num_columns, found[0], index)
            self.row_bytes += 0 if found is None else num_columns * int(np.prod(found[0])) * found[1].itemsize
            self._leaves.append(file)
            self._files += [] if file is None else [(path, file)]
            self._names += [] if file is None else [path_of.name]

    def save(self) -> dict[str, dict[str, Any]]:
        """Write what waits in memory; returns the index of each file."""
        return {name: file.save() for name, (_, file) in zip(self._names, self._files, strict=True)}

    def put(self, values: Any) -> None:
        """Say what the next row is: a batch of values, one a column."""
        for path, file in self._files:
            file.put(at(values, path))

    def put_one(self, value: Any) -> None:
        """Say what the next row is, of one column: a value."""
        for path, file in self._files:
            file.put(np.asarray(at(value, path))[None])

    def advance(self) -> None:
        """Add the row that was put."""
        for _, file in self._files:
            file.advance()

    def read(self, column: int, start: int, stop: int) -> Any:
        """Rows ``start`` to ``stop`` of a column as a batch of values, with None for the leaves that are left out."""
        parts = [None if file is None else file.read(column, start, stop) for file in self._leaves]
        return join(self._space, iter(parts))

    def close(self) -> None:
        """Close the files."""
        for _, file in self._files:
            file.close()


class Recording:
    """Steps of B sub-environments on disk, in time order; row t is what was observed and done at t.

    Attributes:
        lengths: rows of each sub-environment so far, int64 of shape (B,).
        rewards: raw, float32 of shape (rows or more, B).
        terminated, truncated: bool of shape (rows or more, B), never both. A time limit truncates, and so does a reset
            within an episode.
        terminals: stream and row of each terminal observation, in the order of ``terminal_batch``.
        resets: rows before which the algorithm reset all sub-environments.
    """

    def __init__(self, folder: Path, rows: int, env: gymnasium.vector.VectorEnv | gymnasium.Env) -> None:
        """Make the files of a recording of the environments of ``env``.

        Args:
            folder: where; it must not exist.
            rows: that are expected; there may be more.
            env: a vector environment, or a single one.

        Raises:
            StorageError: the disk has no room for so many rows, or is full later on.
        """
        single = isinstance(env, gymnasium.Env)
        streams = 1 if isinstance(env, gymnasium.Env) else env.num_envs
        observation = env.observation_space if isinstance(env, gymnasium.Env) else env.single_observation_space
        action = env.action_space if isinstance(env, gymnasium.Env) else env.single_action_space
        folder.mkdir(parents=True)
        self._folder = folder
        self._observations = ValueFile(folder, "observation", observation, streams)
        self._actions = ValueFile(folder, "action", action, streams)
        self._terminals = ValueFile(folder, "terminal", observation, 1)
        self._check_room(rows * (self._actions.row_bytes + 16 * streams))
        self._put = ValueFile.put_one if single else ValueFile.put
        self.rewards = np.zeros((_FIRST_ROWS, streams), np.float32)
        self.terminated = np.zeros(self.rewards.shape, bool)
        self.truncated = np.zeros(self.rewards.shape, bool)
        self.terminals: list[tuple[int, int]] = []
        self.resets: list[int] = []
        self.lengths = np.zeros(streams, np.int64)
        self._rows = 0

    def save(self) -> None:
        """Write everything that ``open`` needs; nothing can be added afterwards.

        Raises:
            StorageError: the disk is full.
        """
        rows = self._rows
        try:
            parts = [part.save() for part in (self._observations, self._actions, self._terminals)]
            numbers = {name: getattr(self, name)[:rows] for name in ("rewards", "terminated", "truncated")}
            terminals, resets = np.array(self.terminals, np.int64).reshape(-1, 2), np.array(self.resets, np.int64)
            every: dict[str, Any] = {**numbers, "lengths": self.lengths, "terminals": terminals, "resets": resets}
            np.savez_compressed(self._folder / _NUMBERS, **every)
            (self._folder / _INDEX).write_text(json.dumps(parts), encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"{self._folder} cannot hold the recording: {error.strerror}; free some space"
            ) from error

    @classmethod
    def open(cls, folder: Path, observation: gymnasium.Space, action: gymnasium.Space) -> "Recording":
        """Open a recording that was saved, to be read.

        Args:
            folder: of the recording.
            observation, action: spaces of one sub-environment.

        Raises:
            DatasetFormatError: there is no recording that was saved, or it is damaged.
        """
        self = cls.__new__(cls)
        try:
            parts = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            with np.load(folder / _NUMBERS, allow_pickle=False) as numbers:
                self.lengths = numbers["lengths"]
                self.rewards, self.terminated = numbers["rewards"], numbers["terminated"]
                self.truncated = numbers["truncated"]
                self.terminals = [(stream, row) for stream, row in numbers["terminals"].tolist()]
                self.resets = numbers["resets"].tolist()
            self._folder, self._rows = folder, len(self.rewards)
            streams = len(self.lengths)
            self._observations = ValueFile(folder, "observation", observation, streams, parts[0])
            self._actions = ValueFile(folder, "action", action, streams, parts[1])
            self._terminals = ValueFile(folder, "terminal", observation, 1, parts[2])
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise DatasetFormatError(f"{folder} holds no recording that can be read: {error}") from error
        return self

    @property
    def num_streams(self) -> int:
        """Number of sub-environments."""
        return len(self.lengths)

    @property
    def num_episodes(self) -> int:
        """Number of episodes that ended or were broken off."""
        return sum(
            int((self.terminated[:length, stream] | self.truncated[:length, stream]).sum())
            for stream, length in enumerate(self.lengths)
        )

    def observe(self, observations: Any) -> None:
        """Say what the next actions are chosen on. Environments may use their arrays again, so they are read at once."""
        self._put(self._observations, observations)

    def reset(self, observations: Any) -> None:
        """Say that all sub-environments were reset, and what the next actions are chosen on."""
        self.resets.append(self._rows)
        self.observe(observations)

    def act(self, actions: Any) -> None:
        """Say which actions are taken; nothing is recorded before ``append``."""
        self._put(self._actions, actions)

    def append(
        self,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        final: Sequence[Any],
        streams: np.ndarray | None = None,
    ) -> None:
        """Add a step: what was observed and done, and what it brought.

        Args:
            rewards, terminated, truncated: of all sub-environments, of shape (B,).
            final: of each sub-environment, the observation that ended its episode; read where one ended.
            streams: which sub-environments it is recorded of, bool of shape (B,), by default all. One that is left out is so
                from then on.
        """
        row = self._rows
        if row == len(self.rewards):
            self._grow()
        try:
            self._observations.advance()
            self._actions.advance()
            self.rewards[row] = rewards
            self._rows += 1
            self.lengths[slice(None) if streams is None else streams] = self._rows
            over = terminated | truncated
            if over.any():
                self.terminated[row] = terminated
                self.truncated[row] = truncated & ~terminated  # where both happened, it terminated
                self._end_episodes(over if streams is None else over & streams, final)
        except OSError as error:
            raise StorageError(
                f"{self._folder} cannot hold the recording: {error.strerror}; free some space or record less"
            ) from error

    def break_off(self, streams: np.ndarray) -> None:
        """Truncate the running episodes of some sub-environments, which will not be played to their ends."""
        self.truncated[self.lengths[streams] - 1, np.flatnonzero(streams)] = True

    def observation_batch(self, stream: int, start: int, stop: int) -> Any:
        """Observations of one stream, as the environment gave them, as a batched value of their space."""
        return self._observations.read(stream, start, stop)

    def action_batch(self, stream: int, start: int, stop: int) -> Any:
        """Actions of one stream, as the environment received them, as a batched value of their space."""
        return self._actions.read(stream, start, stop)

    def terminal_batch(self, start: int, stop: int) -> Any:
        """Observations that ended episodes, as a batched value of their space."""
        return self._terminals.read(0, start, stop)

    def close(self) -> None:
        """Close the files."""
        for file in (self._observations, self._actions, self._terminals):
            file.close()

    def _end_episodes(self, streams: np.ndarray, final: Sequence[Any]) -> None:
        for stream in np.flatnonzero(streams).tolist():
            self._terminals.put_one(final[stream])
            self._terminals.advance()
            self.terminals.append((stream, self._rows - 1))

    def _grow(self) -> None:
        more = np.zeros_like
        self.rewards = np.concatenate([self.rewards, more(self.rewards)])
        self.terminated = np.concatenate([self.terminated, more(self.terminated)])
        self.truncated = np.concatenate([self.truncated, more(self.truncated)])

    def _check_room(self, least: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < least:
            raise StorageError(
                f"{self._folder} needs room for {least:,} bytes at least, and has {free:,}: free some or record less"
            )
