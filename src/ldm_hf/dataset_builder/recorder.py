"""Records every transition that a training run makes, raw, on disk."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from gymnasium.spaces import Dict
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from ldm_hf.dataset_builder.curves import LearningCurve
from ldm_hf.errors import StorageError

_PLAIN = "observation"  # name of the array of a space that is not a Dict
_BLOCK_BYTES = 2**25  # of one array that wait in memory before they are compressed
_BLOCK_ROWS = 4096
_CODEC = "zstd"
_LEVEL = 1


class EpisodeLog:
    """Returns of the episodes of B environments, and how many transitions had been made when each began."""

    def __init__(self, num_streams: int) -> None:
        """Begin with no episode."""
        self._ended: list[list[tuple[int, float]]] = [[] for _ in range(num_streams)]
        self._totals = np.zeros(num_streams)
        self._starts = np.zeros(num_streams, np.int64)
        self._broken_off = np.zeros(num_streams, bool)
        self._transitions = 0

    @property
    def running(self) -> np.ndarray:
        """Which environments are within an episode, bool of shape (B,); one begins with its first step."""
        return self._starts < self._transitions

    def step(self, rewards: np.ndarray, ended: np.ndarray) -> None:
        """Add one step of all environments; ``ended`` says which episodes it ended."""
        self._totals += rewards
        self._transitions += len(rewards)
        for stream in np.flatnonzero(ended).tolist():
            self._ended[stream].append((int(self._starts[stream]), float(self._totals[stream])))
            self._totals[stream], self._starts[stream] = 0, self._transitions

    def break_off(self, streams: np.ndarray) -> None:
        """Forget the running episodes of some environments, which will not be played to their ends."""
        self._broken_off |= streams & self.running
        self._totals[streams], self._starts[streams] = 0, self._transitions

    def curve(self) -> LearningCurve:
        """The learning curve of the episodes that ended; raises ``EnvironmentFailure`` if there are too few.

        An environment of which an episode was broken off is left out as a whole: its short episodes ended, its long ones
        did not, and what is left says nothing of the policy.
        """
        every = [
            (start, stream, total)
            for stream, episodes in enumerate(self._ended)
            if not self._broken_off[stream]
            for start, total in episodes
        ]
        every.sort(key=lambda episode: episode[:2])
        return LearningCurve.of([total for *_, total in every], [start for start, *_ in every])


class BlockFile:
    """An array of shape (T, B, ...) that grows row by row, kept on disk in compressed blocks of one column each."""

    def __init__(self, path: Path, dtype: Any, num_columns: int, item: tuple[int, ...]) -> None:
        """Make the file; it is gone with its folder."""
        row_bytes = max(1, num_columns * int(np.prod(item)) * np.dtype(dtype).itemsize)
        rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // row_bytes))
        self._file = path.open("w+b")
        self._block = np.empty((rows, num_columns, *item), dtype)
        self._blocks: list[list[tuple[int, int]]] = []  # of each block: where its columns lie in the file
        self._codec = pa.Codec(_CODEC, compression_level=_LEVEL)
        self.length = 0

    def append(self, row: Any) -> None:
        """Add a row of shape (B, ...)."""
        position = self.length % len(self._block)
        self._block[position] = row
        self.length += 1
        if position == len(self._block) - 1:
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
        offset, size = self._blocks[block][column]
        self._file.seek(offset)
        shape = (len(self._block), *self._block.shape[2:])
        nbytes = self._block[:, column].nbytes
        data = self._codec.decompress(self._file.read(size), nbytes)
        return np.frombuffer(data, self._block.dtype).reshape(shape)


class Recording:
    """Steps of B sub-environments on disk, in time order; row t is what was observed and done at t.

    Attributes:
        lengths: rows of each sub-environment so far, int64 of shape (B,).
        rewards: raw, float32 of shape (capacity, B).
        terminated, truncated: bool of shape (capacity, B); a time limit truncates, and so does a reset within an episode.
        terminals: stream and row of each terminal observation, in the order of ``terminal_batch``.

    Raises:
        StorageError: the disk has no room for a recording of this capacity, or is full later on.
    """

    def __init__(self, folder: Path, capacity: int, venv: VecEnv):
        space = venv.observation_space
        self._nested = isinstance(space, Dict)
        spaces = space.spaces if isinstance(space, Dict) else {_PLAIN: space}
        actions = venv.action_space
        assert actions.dtype is not None and actions.shape is not None
        streams = venv.num_envs
        folder.mkdir(parents=True)
        self._folder = folder
        self._check_room(capacity * streams * (actions.dtype.itemsize * int(np.prod(actions.shape)) + 16))
        self._observations = {
            key: BlockFile(folder / f"observation-{index}", part.dtype, streams, part.shape or ())
            for index, (key, part) in enumerate(spaces.items())
        }
        self._terminals = {
            key: BlockFile(folder / f"terminal-{index}", part.dtype, 1, part.shape or ())
            for index, (key, part) in enumerate(spaces.items())
        }
        self._actions = BlockFile(folder / "action", actions.dtype, streams, actions.shape)
        self.rewards = np.zeros((capacity, streams), np.float32)
        self.terminated = np.zeros((capacity, streams), bool)
        self.truncated = np.zeros((capacity, streams), bool)
        self.terminals: list[tuple[int, int]] = []
        self.lengths = np.zeros(streams, np.int64)
        self._rows = 0

    @property
    def num_streams(self) -> int:
        """Number of sub-environments."""
        return self.rewards.shape[1]

    @property
    def num_episodes(self) -> int:
        """Number of episodes that ended or were broken off."""
        return sum(
            int((self.terminated[:length, stream] | self.truncated[:length, stream]).sum())
            for stream, length in enumerate(self.lengths)
        )

    def append(self, observations: Any, actions: np.ndarray, rewards: np.ndarray, streams: np.ndarray) -> None:
        """Add one step; there must be room for it.

        Args:
            observations: of all sub-environments, that the actions were chosen on.
            actions, rewards: of the step.
            streams: which sub-environments it is recorded of, bool of shape (B,). One that is left out is so from then on.
        """
        with self._full_disk():
            for key, file in self._observations.items():
                file.append(_part(observations, key))
            self._actions.append(actions)
        self.rewards[self._rows] = rewards
        self._rows += 1
        self.lengths[streams] = self._rows

    def end_episode(self, stream: int, truncated: bool, observation: Any) -> None:
        """Say that the last step ended a sub-environment's episode, and on what observation."""
        row = self._rows - 1
        (self.truncated if truncated else self.terminated)[row, stream] = True
        self.terminals.append((stream, row))
        with self._full_disk():
            for key, file in self._terminals.items():
                file.append(np.asarray(_part(observation, key))[None])

    def break_off(self, streams: np.ndarray) -> None:
        """Truncate the running episodes of some sub-environments, which will not be played to their ends."""
        self.truncated[self.lengths[streams] - 1, np.flatnonzero(streams)] = True

    def observation_batch(self, stream: int, start: int, stop: int) -> Any:
        """Observations of one stream as a batched value of the space."""
        return self._joined({key: file.read(stream, start, stop) for key, file in self._observations.items()})

    def action_batch(self, stream: int, start: int, stop: int) -> np.ndarray:
        """Actions of one stream, as the environment received them."""
        return self._actions.read(stream, start, stop)

    def terminal_batch(self, start: int, stop: int) -> Any:
        """Observations that ended episodes, as a batched value of the space."""
        return self._joined({key: file.read(0, start, stop) for key, file in self._terminals.items()})

    def close(self) -> None:
        """Close the files."""
        for file in (*self._observations.values(), *self._terminals.values(), self._actions):
            file.close()

    @contextlib.contextmanager
    def _full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._folder} cannot hold the recording: {error.strerror}; free some space or record less"
            ) from error

    def _joined(self, parts: dict[str, np.ndarray]) -> Any:
        return parts if self._nested else parts[_PLAIN]

    def _check_room(self, least: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < least:
            raise StorageError(
                f"{self._folder} needs room for {least:,} bytes at least, and has {free:,}: free some or record less"
            )


class RecorderVecEnv(VecEnvWrapper):
    """Records what passes between an algorithm and its environments: some steps, and the ends of the episodes begun in them.

    It belongs directly above the environments, below anything that changes observations, actions or rewards.

    Args:
        venv: the environments.
        steps: during which episodes are begun.
        limit: steps after these by which every episode ends. Those that have not, for whatever reason, are broken off.
        recording: of a capacity of ``steps + limit``; without one, only returns are kept.

    Attributes:
        training_steps: steps that were made before ``end_training``; None before that.
    """

    def __init__(self, venv: VecEnv, steps: int, limit: int, recording: Recording | None = None):
        super().__init__(venv)
        self.training_steps: int | None = None
        self._log = EpisodeLog(venv.num_envs)
        self._steps, self._last_start, self._limit = 0, steps, limit
        self._recorded = np.ones(venv.num_envs, bool)  # of which environments the next step is recorded
        self._recording = recording
        self._observations: Any = None
        self._actions: np.ndarray | None = None

    @property
    def is_recording(self) -> bool:
        """Whether anything of the next step is recorded."""
        return bool(self._recorded.any())

    def curve(self) -> LearningCurve:
        """The learning curve of all episodes that were begun; raises ``EnvironmentFailure`` if there are too few."""
        return self._log.curve()

    def end_training(self) -> None:
        """Say that no more is learned; no episode begins from here on, and those that run should be played to their ends."""
        self.training_steps = self._steps
        if self._steps < self._last_start:
            self._last_start = self._steps
            self._recorded &= self._log.running

    def break_off(self) -> None:
        """Truncate the episodes that run and are recorded: they will not be played to their ends."""
        streams = self._recorded & self._log.running
        self._log.break_off(streams)
        if self._recording is not None:
            self._recording.break_off(streams)
        if self._steps >= self._last_start:
            self._recorded[:] = False

    def reset(self) -> Any:
        """Reset all environments; some algorithms do so in the middle of episodes."""
        self.break_off()
        self._observations = self.venv.reset()
        return self._observations

    def step_async(self, actions: np.ndarray) -> None:
        """Step all environments."""
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step and record it, with the observations that its actions were chosen on."""
        observations, rewards, dones, infos = self.venv.step_wait()
        if self.is_recording:
            self._record(rewards, dones & self._recorded, infos)
        self._steps += 1
        if self._steps >= self._last_start:
            self._recorded &= ~dones
        if self._steps >= self._last_start + self._limit:
            self.break_off()
        # After the end of an episode these are already those of the reset.
        self._observations = observations
        return observations, rewards, dones, infos

    def _record(self, rewards: np.ndarray, ended: np.ndarray, infos: list[dict[str, Any]]) -> None:
        self._log.step(rewards, ended)
        if self._recording is None or self._actions is None:
            return
        self._recording.append(self._observations, self._actions, rewards, self._recorded)
        for index in np.flatnonzero(ended).tolist():
            cut_off = bool(infos[index].get("TimeLimit.truncated", False))
            self._recording.end_episode(index, cut_off, infos[index]["terminal_observation"])


def _part(observations: Any, key: str) -> Any:
    return observations[key] if isinstance(observations, dict) else observations
