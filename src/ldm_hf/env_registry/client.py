"""Environments in isolated workers as Gymnasium's own classes."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from ldm_hf.env_registry.fleet import Fleet, Step
from ldm_hf.env_registry.infos import row_info, vector_info
from ldm_hf.env_registry.isolated.space_tree import join, split
from ldm_hf.env_registry.remote import RemoteSettings
from ldm_hf.errors import ConfigError


class RemoteEnv(gymnasium.Env):
    """One environment in a worker of its own.

    Pickling it carries what it is made of, not its state: the copy is a new environment that must be reset.

    With ``restart`` in its settings, a failure of the worker ends the episode as truncated, with the last observation,
    reward 0 and the reason in ``info["worker_failure"]``; the next reset is the new worker's.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        """Start a worker and make the environment.

        Raises:
            EnvironmentFailure: that failed; the message says why.
        """
        self.settings, self.render_mode = settings, settings.render_mode
        self._fleet = Fleet(settings, 1, 1, AutoresetMode.DISABLED.value)
        self.observation_space, self.action_space = self._fleet.observation_space, self._fleet.action_space
        self.metadata = _metadata(self._fleet)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, in a new worker if the last one failed."""
        super().reset(seed=seed)
        step = self._fleet.reset([seed], options, None)
        return self._observation(step), row_info(step.infos[0][0], 0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action.

        Raises:
            EnvironmentFailure: the worker failed, or the environment raised an exception; the next reset replaces it.
            InvalidValueError: the action does not have the shape of the action space.
        """
        self._fleet.send_step([[part] for part in split(self._fleet.description["action_space"], action)])
        step = self._fleet.receive_step()
        terminated, truncated = step.ends[:, 0].tolist()
        return self._observation(step), float(step.rewards[0]), terminated, truncated, row_info(step.infos[0][0], 0)

    def render(self) -> Any:
        """The frame as uint8 of shape (height, width, 3), or None where the environment gives none."""
        return self._fleet.ask("render")[0]["frames"][0]

    def close(self) -> None:
        """End the worker."""
        self._fleet.close()

    def describe(self) -> dict[str, Any]:
        """What the worker says of the environment: spaces as JSON, time limit, render modes, registered arguments."""
        return self._fleet.description

    def diagnostics(self) -> dict[str, Any]:
        """Counts of what is out of order, see ``RemoteVectorEnv.diagnostics``."""
        return diagnostics(self._fleet)

    def _observation(self, step: Step) -> Any:
        return join(self._fleet.description["observation_space"], iter([part[0] for part in step.observations]))

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["settings"])  # type: ignore[misc]


class RemoteVectorEnv(gymnasium.vector.VectorEnv):
    """Environments in one or several workers; each worker steps all of its environments on one message.

    With ``restart`` in its settings, a failing worker is replaced: the episodes of its environments end as truncated, with
    the reason in ``worker_failure`` of the info (of ``final_info`` under ``SAME_STEP``), and all others go on. Without it
    the step raises; the other environments keep their state, and ``reset`` replaces the worker.

    Pickling it carries what it is made of, not its state.
    """

    def __init__(
        self,
        settings: RemoteSettings,
        num_envs: int,
        *,
        num_workers: int = 1,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        """Start the workers and make the environments.

        Raises:
            ConfigError: there are more workers than environments, or none.
            EnvironmentFailure: a worker did not start; the message says why.
        """
        self.settings, self.num_envs, self.num_workers = settings, num_envs, num_workers
        self.autoreset_mode, self.render_mode = autoreset_mode, settings.render_mode
        self._fleet = Fleet(settings, num_envs, num_workers, autoreset_mode.value)
        self.single_observation_space = self._fleet.observation_space
        self.single_action_space = self._fleet.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {**_metadata(self._fleet), "autoreset_mode": autoreset_mode}

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those of ``options["reset_mask"]``.

        Args:
            seed: of the first environment, the others follow by one; or one for each.
            options: for the environments; ``reset_mask``, bool of shape (num_envs,), is taken out.
        """
        super().reset(seed=seed if isinstance(seed, int) else None)
        if seed is None or isinstance(seed, int | np.integer):
            seeds = [None if seed is None else int(seed) + index for index in range(self.num_envs)]
        else:
            seeds = [None if one is None else int(one) for one in seed]
            if len(seeds) != self.num_envs:
                raise ConfigError(f"seed must be one number or {self.num_envs} of them, got {len(seeds)}")
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        if mask is not None and (np.shape(mask) != (self.num_envs,) or np.asarray(mask).dtype != bool):
            raise ConfigError(f"reset_mask must be bool of shape ({self.num_envs},), got {mask!r}")
        step = self._fleet.reset(seeds, options or None, mask)
        return self._observation(step.observations), vector_info(step.infos)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every environment; see ``step_async`` and ``step_wait``."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Any) -> None:
        """Have every environment take its action, without waiting.

        Raises:
            InvalidValueError: the actions do not have the shape of the action space.
        """
        self._fleet.send_step(split(self._fleet.description["action_space"], actions))

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Wait for the step.

        Raises:
            EnvironmentFailure: a worker failed, or an environment raised an exception; ``reset`` replaces it.
        """
        step = self._fleet.receive_step()
        info = vector_info(step.infos)
        if step.final_observations:
            info.update(self._final_info(step))
        terminated, truncated = step.ends
        return self._observation(step.observations), step.rewards, terminated, truncated, info

    def render(self) -> tuple[Any, ...]:
        """A frame of each environment: uint8 of shape (height, width, 3), or None."""
        return tuple(frame for answer in self._fleet.ask("render") for frame in answer["frames"])

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment; plain data alone can leave a worker."""
        answers = self._fleet.ask("get", lambda part: {"name": name})
        return tuple(value for answer in answers for value in answer["values"])

    def set_attr(self, name: str, values: Sequence[Any]) -> None:
        """Set an attribute of each environment, one value each."""
        self._fleet.ask("set", lambda part: {"name": name, "values": list(values[part])})

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of each environment with plain data; what it returns must be plain data too."""
        answers = self._fleet.ask("call", lambda part: {"name": name, "args": list(args), "kwargs": kwargs})
        return tuple(value for answer in answers for value in answer["values"])

    def diagnostics(self) -> dict[str, Any]:
        """Counts of what is out of order, over all environments.

        Returns:
            ``steps``, ``observations_outside_space``, ``nonfinite_rewards``, ``vector_rewards``; ``step_values``: how many
            values a step of the library gives (4 for old Gym); ``max_episode_steps`` and ``time_limit_is_default``.
        """
        return diagnostics(self._fleet)

    def close_extras(self, **kwargs: Any) -> None:
        """End the workers."""
        self._fleet.close()

    def _observation(self, parts: list[Any]) -> Any:
        batched = (tuple(part) if isinstance(part, list) else part for part in parts)
        return join(self._fleet.description["observation_space"], batched)

    def _final_info(self, step: Step) -> dict[str, Any]:
        ended = step.ends.any(axis=0)
        observations = np.full(self.num_envs, None, object)
        for index in np.flatnonzero(ended):
            parts = iter([part[index] for part in step.final_observations])
            observations[index] = join(self._fleet.description["observation_space"], parts)
        infos = vector_info(step.final_infos)
        return {"final_obs": observations, "_final_obs": ended, "final_info": infos, "_final_info": ended.copy()}

    def __getstate__(self) -> dict[str, Any]:
        names = ("settings", "num_envs", "num_workers", "autoreset_mode")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        settings, num_envs = state.pop("settings"), state.pop("num_envs")
        self.__init__(settings, num_envs, **state)  # type: ignore[misc]


def diagnostics(fleet: Fleet) -> dict[str, Any]:
    """Add up what the workers of a fleet count."""
    answers = fleet.ask("diagnostics")
    counts = {key: sum(answer[key] for answer in answers) for key in answers[0] if key != "step_values"}
    told = {key: fleet.description[key] for key in ("max_episode_steps", "time_limit_is_default")}
    return {**counts, "step_values": answers[0]["step_values"], **told}


def _metadata(fleet: Fleet) -> dict[str, Any]:
    description = fleet.description
    return {"render_modes": description["render_modes"], "render_fps": description["render_fps"] or 30}
