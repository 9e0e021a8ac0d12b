"""Records every transition that a training run makes, raw, on disk."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Dict
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from ldm_hf.errors import EnvironmentFailure, StorageError

_PLAIN = "observation"  # name of the array of a space that is not a Dict


class Recording:
    """T steps of B sub-environments as arrays on disk, in time order; row t is what was observed and done at t.

    Attributes:
        observations: arrays of shape (T, B, ...) by key of a ``Dict`` space, or under one name.
        actions: as the environments received them, of shape (T, B, ...).
        rewards: raw, float32 of shape (T, B).
        terminated, truncated: bool of shape (T, B); a time limit truncates, and so does a reset within an episode.

    Raises:
        StorageError: the disk has no room for as many steps as were asked for; all of it is taken at once.
    """

    def __init__(self, folder: Path, capacity: int, venv: VecEnv):
        space = venv.observation_space
        spaces = space.spaces if isinstance(space, Dict) else {_PLAIN: space}
        shape = (capacity, venv.num_envs)

        def array(name: str, dtype: Any, item: tuple[int, ...] | None = ()) -> np.ndarray:
            return _reserved_array(folder / f"{name}.npy", dtype, (*shape, *(item or ())))

        try:
            folder.mkdir(parents=True)
            self.observations = {
                key: array(f"observation-{index}", space.dtype, space.shape)
                for index, (key, space) in enumerate(spaces.items())
            }
            self.actions = array("action", venv.action_space.dtype, venv.action_space.shape)
            self.rewards = array("reward", np.float32)
            self.terminated = array("terminated", bool)
            self.truncated = array("truncated", bool)
            self._unfinished = array("unfinished", bool)
        except OSError as error:
            raise StorageError(
                f"{folder} cannot hold a recording of {capacity * venv.num_envs} transitions: {error.strerror}; "
                "nothing was lost: free some space or record fewer"
            ) from error
        self.capacity = capacity
        self.length = 0

    @property
    def num_streams(self) -> int:
        """Number of sub-environments."""
        return self.rewards.shape[1]

    @property
    def observation_bytes(self) -> int:
        """Size of one observation."""
        return sum(array[0, 0].nbytes for array in self.observations.values())

    def append(
        self, observations: Any, actions: np.ndarray, rewards: np.ndarray, dones: np.ndarray, truncated: np.ndarray
    ) -> None:
        """Add one step of all sub-environments; steps beyond the capacity are not kept."""
        if self.length == self.capacity:
            return
        row = self.length
        parts = observations if isinstance(observations, dict) else {_PLAIN: observations}
        for key, array in self.observations.items():
            array[row] = parts[key]
        self.actions[row] = actions
        self.rewards[row] = rewards
        self.terminated[row] = dones & ~truncated
        self.truncated[row] = dones & truncated
        self.length += 1

    def cut_episodes(self) -> None:
        """Truncate the episodes that run: the environments are being reset. Such episodes have no return."""
        if not 0 < self.length < self.capacity:
            return
        last = self.length - 1
        self._unfinished[last] = ~(self.terminated[last] | self.truncated[last])
        self.truncated[last] |= self._unfinished[last]

    def observation_batch(self, stream: int, start: int, stop: int) -> Any:
        """Observations of one stream as a batched value of the space."""
        parts = {key: np.asarray(array[start:stop, stream]) for key, array in self.observations.items()}
        return parts[_PLAIN] if set(parts) == {_PLAIN} else parts

    def episode_returns(self) -> np.ndarray:
        """Returns of the episodes that ended, in the order of their end, float64."""
        steps, streams = np.nonzero(self.terminated[: self.length] | self.truncated[: self.length])
        returns = np.empty(len(steps))
        for stream in np.unique(streams):
            ends = steps[streams == stream]
            rewards = self.rewards[: ends[-1] + 1, stream].astype(np.float64)
            returns[streams == stream] = np.add.reduceat(rewards, [0, *(ends[:-1] + 1)])
        return returns[~self._unfinished[steps, streams]]


class RecorderVecEnv(VecEnvWrapper):
    """Records what passes between an algorithm and its environments.

    It belongs directly above the environments, below anything that changes observations, actions or rewards.
    """

    def __init__(self, venv: VecEnv, recording: Recording):
        super().__init__(venv)
        self._recording = recording
        self._observations: Any = None
        self._actions: np.ndarray | None = None

    def reset(self) -> Any:
        """Reset all environments; some algorithms do so in the middle of episodes."""
        self._recording.cut_episodes()
        self._observations = self.venv.reset()
        return self._observations

    def step_async(self, actions: np.ndarray) -> None:
        """Step all environments."""
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step and record it, with the observations that its actions were chosen on."""
        observations, rewards, dones, infos = self.venv.step_wait()
        truncated = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        assert self._actions is not None
        self._recording.append(self._observations, self._actions, rewards, dones, truncated)
        # After the end of an episode these are already those of the reset.
        self._observations = observations
        return observations, rewards, dones, infos


def first_and_last10(returns: np.ndarray) -> tuple[float, float]:
    """Mean return of the first and of the last 10 % of episodes, at least one each (paper section 4.2).

    Raises:
        EnvironmentFailure: fewer than 10 episodes ended, too few to tell, or their returns are not finite.
    """
    if len(returns) < 10:
        raise EnvironmentFailure(f"only {len(returns)} episodes ended; at least 10 are needed: train for longer")
    if not np.isfinite(returns).all():
        raise EnvironmentFailure(
            f"{np.sum(~np.isfinite(returns))} of {len(returns)} episodes have no finite return: nothing can be scored"
        )
    share = max(1, len(returns) // 10)
    return float(returns[:share].mean()), float(returns[-share:].mean())


def _reserved_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    # A full disk must be noticed here: the kernel kills a process that writes to a mapped page it has no space for.
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
