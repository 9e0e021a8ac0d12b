"""Records every transition of the environments that a learner acts in, whoever learns: below whatever adapts them to it."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from ldm_hf.dataset_builder.curves import MIN_EPISODES, LearningCurve
from ldm_hf.dataset_builder.reference.recording import Recording
from ldm_hf.env_registry.remote.worker_pool import replaced
from ldm_hf.errors import ConfigError


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
        if not ended.any():
            return
        for stream in np.flatnonzero(ended).tolist():
            self._ended[stream].append((int(self._starts[stream]), float(self._totals[stream])))
            self._totals[stream], self._starts[stream] = 0, self._transitions

    def break_off(self, streams: np.ndarray) -> None:
        """Forget the running episodes of some environments, which will not be played to their ends."""
        self._broken_off |= streams & self.running
        self.forget(streams)

    def forget(self, streams: np.ndarray) -> None:
        """Forget the running episodes of some environments, which something else than the policy ended."""
        self._totals[streams], self._starts[streams] = 0, self._transitions

    @property
    def begun(self) -> int:
        """Episodes that ended or are running."""
        return sum(map(len, self._ended)) + int(self.running.sum())

    def episodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Starts, int64, and returns, float64, of the episodes that ended, by their start.

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
        starts, totals = [start for start, *_ in every], [total for *_, total in every]
        return np.array(starts, np.int64), np.array(totals, np.float64)

    def curve(self, least: int = MIN_EPISODES) -> LearningCurve:
        """The learning curve of the episodes that ended; raises ``EnvironmentFailure`` if there are fewer than ``least``."""
        starts, totals = self.episodes()
        return LearningCurve.of(totals, starts, least)


class Recorder(gymnasium.vector.VectorWrapper):
    """Records what environments give and are given: some steps, and the ends of the episodes begun in them.

    It belongs directly above the environments, below anything that changes observations, actions or rewards, and changes
    nothing itself.

    Attributes:
        training_steps: steps that were made before ``end_training``; None before that.
    """

    def __init__(
        self, env: gymnasium.vector.VectorEnv, steps: int, limit: int, recording: Recording | None = None
    ) -> None:
        """Record a vector environment.

        Args:
            env: the environments.
            steps: during which episodes are begun.
            limit: steps after these by which every episode ends. Those that have not, for whatever reason, are broken off.
            recording: where to; without one, only returns are kept.

        Raises:
            ConfigError: they do not reset in the step that ends an episode; in other modes, a row would be no transition.
        """
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ConfigError(f"only environments made with autoreset_mode='SameStep' are recorded, got {mode!r}")
        self.training_steps: int | None = None
        self._log = EpisodeLog(env.num_envs)
        self._steps, self._last_start, self._limit = 0, steps, limit
        self._recorded = np.ones(env.num_envs, bool)  # of which environments the next step is recorded
        self._recording = recording

    @property
    def is_recording(self) -> bool:
        """Whether anything of the next step is recorded."""
        return bool(self._recorded.any())

    @property
    def begun(self) -> int:
        """Episodes that ended or are running."""
        return self._log.begun

    def episodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Starts and returns of the episodes that ended, by their start, but for environments that were broken off."""
        return self._log.episodes()

    def curve(self, least: int = MIN_EPISODES) -> LearningCurve:
        """The learning curve of all episodes that were begun; raises ``EnvironmentFailure`` if there are fewer."""
        return self._log.curve(least)

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

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environments; some algorithms do so in the middle of episodes.

        Raises:
            ConfigError: some of them only, by ``options["reset_mask"]``.
        """
        if "reset_mask" in (options or {}):
            raise ConfigError("environments that are recorded are reset all at once, without a reset_mask")
        self.break_off()
        observations, info = self.env.reset(seed=seed, options=options)
        if self._recording is not None:
            self._recording.reset(observations)
        return observations, info

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step the environments, and record the step with the observations that its actions were chosen on."""
        if self._recording is not None:
            self._recording.act(actions)
        observations, rewards, terminated, truncated, info = step = self.env.step(actions)
        self._steps += 1
        if not self.is_recording:
            return step
        over = terminated | truncated
        failed = replaced(
            info
        )  # whose worker died: how its episode would have ended is not known, so it is in no return
        self._log.step(rewards, over & self._recorded if failed is None else over & self._recorded & ~failed)
        if failed is not None:
            self._log.forget(failed)
        if self._recording is not None:
            self._recording.append(rewards, terminated, truncated, info.get("final_obs", ()), self._recorded)
            self._recording.observe(observations)  # after the end of an episode already those of the reset
        if self._steps >= self._last_start:
            self._recorded &= ~over
        if self._steps >= self._last_start + self._limit:
            self.break_off()
        return step

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment."""
        return self.env.get_attr(name)  # type: ignore[attr-defined]

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each environment."""
        self.env.set_attr(name, values)  # type: ignore[attr-defined]

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of each environment."""
        return self.env.call(name, *args, **kwargs)  # type: ignore[attr-defined]


class EpisodeRecorder(gymnasium.Wrapper):
    """Records a single environment whose episodes are all played to their ends, as evaluation does."""

    def __init__(self, env: gymnasium.Env, recording: Recording) -> None:
        """Record into a recording of this environment."""
        super().__init__(env)
        self._recording = recording

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**options)
        self._recording.observe(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment, and record the step."""
        self._recording.act(action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        ends = np.array([terminated], bool), np.array([truncated], bool)
        self._recording.append(np.array([reward], float), *ends, [observation])
        self._recording.observe(observation)
        return observation, reward, terminated, truncated, info
