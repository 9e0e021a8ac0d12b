"""Environments in isolated workers as Gymnasium's own classes."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from ldm_hf.env_registry.experts import checked_actions
from ldm_hf.env_registry.remote.infos import row_info, vector_info
from ldm_hf.env_registry.remote.step import Step
from ldm_hf.env_registry.remote.worker_batch import RemoteSettings, WorkerBatch
from ldm_hf.env_registry.remote.worker_pool import WorkerPool
from ldm_hf.env_registry.spec import gymnasium_spec
from ldm_hf.env_registry.worker.space_tree import join, split
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
        self._pool = WorkerPool(settings, 1, 1, AutoresetMode.DISABLED.value)
        self.observation_space, self.action_space = self._pool.observation_space, self._pool.action_space
        self.metadata = _metadata(self._pool)
        self.spec = _spec(self._pool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, in a new worker if the last one failed."""
        super().reset(seed=seed)
        step = self._pool.reset([seed], [options or None], None)
        return self._observation(step), row_info(step.infos[0][0], 0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action.

        Raises:
            EnvironmentFailure: the worker failed, or the environment raised an exception; the next reset replaces it. Or
                the call before was interrupted, by ``KeyboardInterrupt`` for one: then a reset must come first.
            InvalidValueError: the action does not have the shape of the action space.
        """
        return self._result(self._pool.step(self._parts(action)))

    def step_async(self, action: Any) -> None:
        """Take an action without waiting, so that environments in other workers can act at the same time.

        Raises:
            InvalidValueError: as ``step``.
            AlreadyPendingCallError: the step before was not waited for.
        """
        self._pool.send_step(self._parts(action))

    def step_wait(self) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """What the action brought.

        Raises:
            EnvironmentFailure: as ``step``.
            NoAsyncCallError: there is no step to wait for.
        """
        return self._result(self._pool.receive_step())

    def reset_async(self, *, seed: int | None = None) -> None:
        """Start an episode without waiting.

        Raises:
            AlreadyPendingCallError: the step or reset before was not waited for.
            EnvironmentFailure: as ``reset``.
        """
        super().reset(seed=seed)
        self._pool.send_reset([seed])

    def reset_wait(self) -> tuple[Any, dict[str, Any]]:
        """What the episode begins with.

        Raises:
            EnvironmentFailure: as ``reset``.
            NoAsyncCallError: there is no reset to wait for.
        """
        step = self._pool.receive_reset()
        return self._observation(step), row_info(step.infos[0][0], 0)

    @property
    def awaited(self) -> WorkerBatch | None:
        """What ``wait_for_workers`` waits for after ``step_async`` or ``reset_async``."""
        return self._pool.awaited(0)

    def render(self) -> Any:
        """The frame as uint8 of shape (height, width, 3), a list of frames or a text, as the render mode says; or None."""
        return self._pool.render()[0]

    def has_wrapper_attr(self, name: str) -> bool:
        """Whether this, the environment in the worker or what its wrappers wrap has an attribute."""
        return hasattr(self, name) or self._pool.ask("has", name=name) != ["nothing"]

    def get_wrapper_attr(self, name: str) -> Any:
        """An attribute of this or of the environment in the worker; of a method there, a function that calls it."""
        if hasattr(self, name):
            return getattr(self, name)
        (kind,) = self._pool.ask("has", name=name)
        if kind == "nothing":
            raise AttributeError(f"{self.settings.id} has no attribute {name!r}")
        return functools.partial(self._call, name) if kind == "method" else self._call(name)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set an attribute of the environment in the worker; without ``force``, only if it has that already."""
        if not force and self._pool.ask("has", name=name) == ["nothing"]:
            return False
        self._pool.ask_rows("set", [0], [value], name=name)
        return True

    def close(self) -> None:
        """End the worker."""
        self._pool.close()

    def describe(self) -> dict[str, Any]:
        """What the worker says of the environment: spaces as JSON, time limit, render modes, registered arguments."""
        return self._pool.description

    def diagnostics(self) -> dict[str, Any]:
        """Counts of what is out of order, see ``RemoteVectorEnv.diagnostics``."""
        return self._pool.diagnostics()

    def _parts(self, action: Any) -> list[Any]:
        return [[part] for part in split(self._pool.description["action_space"], action)]

    def _result(self, step: Step) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        terminated, truncated = step.ends[:, 0].tolist()
        return self._observation(step), float(step.rewards[0]), terminated, truncated, row_info(step.infos[0][0], 0)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self._pool.ask_rows("call", [0], name=name, args=list(args), kwargs=kwargs)[0]

    def _observation(self, step: Step) -> Any:
        return join(self._pool.description["observation_space"], iter([part[0] for part in step.observations]))

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["settings"])  # type: ignore[misc]


class RemoteVectorEnv(gymnasium.vector.VectorEnv):
    """Environments in one or several workers; each worker steps all of its environments on one message.

    With ``restart`` in its settings, a failing worker is replaced: the episodes of its environments end as truncated, with
    the reason in ``worker_failure`` of the info (of ``final_info`` under ``SAME_STEP``), and all others continue. Without it
    the step raises; the other environments keep their state, and ``reset`` replaces the worker.

    Pickling it carries what it is made of, not its state.
    """

    def __init__(
        self,
        settings: RemoteSettings,
        num_envs: int,
        *,
        num_workers: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        """Start the workers and make the environments.

        Raises:
            ConfigError: there are more workers than environments, or none.
            EnvironmentFailure: a worker did not start; the message says why.
        """
        self.settings, self.num_envs, self.num_workers = settings, num_envs, num_workers
        self.autoreset_mode, self.render_mode = AutoresetMode(autoreset_mode), settings.render_mode
        self._pool = WorkerPool(settings, num_envs, num_workers, self.autoreset_mode.value)
        self.single_observation_space = self._pool.observation_space
        self.single_action_space = self._pool.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {**_metadata(self._pool), "autoreset_mode": self.autoreset_mode}
        self.spec = _spec(self._pool)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override] # as Gymnasium's own vector environments
        """Seed of each environment's random numbers."""
        return self.get_attr("np_random_seed")

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | Sequence[dict[str, Any] | None] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those of ``options["reset_mask"]``.

        Args:
            seed: of the first environment, the others follow by one; or one for each.
            options: for the environments; ``reset_mask``, bool of shape (num_envs,), is taken out. Or one for each.

        Raises:
            ConfigError: seeds, options or mask are not those of ``num_envs`` environments.
            AlreadyPendingCallError: a step was sent that no ``step_wait`` has taken.
            ClosedEnvironmentError: after ``close``.
            EnvironmentFailure: a worker failed, or an environment raised an exception.
        """
        super().reset(seed=seed if isinstance(seed, int) else None)
        if seed is None or isinstance(seed, int | np.integer):
            seeds = [None if seed is None else int(seed) + index for index in range(self.num_envs)]
        else:
            seeds = [None if one is None else int(one) for one in seed]
            if len(seeds) != self.num_envs:
                raise ConfigError(f"seed must be one number or {self.num_envs} of them, got {len(seeds)}")
        mask = None
        if options is None or isinstance(options, dict):
            shared = dict(options or {})
            if "reset_mask" in shared:
                mask = _checked_mask(shared.pop("reset_mask"), self.num_envs)
            options = [shared or None] * self.num_envs
        if len(options) != self.num_envs:
            raise ConfigError(f"options must be one dictionary or {self.num_envs} of them, got {len(options)}")
        step = self._pool.reset(seeds, options, mask)
        return self._observation(step.observations), vector_info(step.infos)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every environment; see ``step_async`` and ``step_wait``.

        Raises:
            EnvironmentFailure: also where the call before was interrupted, by ``KeyboardInterrupt`` for one: then a reset
                of all environments must come first.
        """
        return self._result(self._pool.step(split(self._pool.description["action_space"], actions)))

    def step_async(self, actions: Any) -> None:
        """Have every environment take its action, without waiting.

        Raises:
            InvalidValueError: the actions do not have the shape of the action space.
            AlreadyPendingCallError: the step before was not waited for.
        """
        self._pool.send_step(split(self._pool.description["action_space"], actions))

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Wait for the step.

        Raises:
            EnvironmentFailure: a worker failed, or an environment raised an exception; ``reset`` replaces it.
            NoAsyncCallError: there is no step to wait for.
        """
        return self._result(self._pool.receive_step())

    def render(self) -> tuple[Any, ...]:
        """What each environment renders, see ``RemoteEnv.render``."""
        return tuple(self._pool.render())

    def send(self, actions: Any, env_ids: Sequence[int] | np.ndarray | None = None) -> None:
        """Have some environments take their actions without waiting; ``recv`` hands over those that are ready.

        As EnvPool's ``send`` and ``recv``: slow environments do not hold fast ones. Those of one worker step together, so
        give each environment a worker (``num_workers=num_envs``) where they differ.

        Args:
            actions: a batch, of as many environments as there are ids.
            env_ids: which, all of those of a worker one after another, as ``recv`` gives them; by default all.

        Raises:
            ConfigError: the ids are not those of whole workers, or of one that is still stepping.
            InvalidValueError: the actions do not have the shape of the action space.
            AlreadyPendingCallError: a ``step_async`` was not waited for.
        """
        ids = np.arange(self.num_envs) if env_ids is None else np.asarray(env_ids)
        self._pool.send_rows(ids, split(self._pool.description["action_space"], actions))

    def recv(self, batch_size: int = 1) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Wait until at least ``batch_size`` of the environments that were sent actions are ready.

        Until all have been received, ``step``, ``reset`` and everything else is refused.

        Returns:
            As ``step``, of those that are ready; ``info["env_id"]`` says which these are.

        Raises:
            EnvironmentFailure: a worker failed, or an environment raised an exception. Those that are ready with it are
                handed over before, and the others can still be received; after that ``reset`` replaces it.
            NoAsyncCallError: no environment was sent an action.
        """
        env_ids, step = self._pool.receive_rows(batch_size)
        observation, rewards, terminated, truncated, info = self._result(step)
        return observation, rewards, terminated, truncated, {**info, "env_id": env_ids}

    def has_attr(self, name: str) -> bool:
        """Whether every environment, or what its wrappers wrap, has an attribute."""
        return "nothing" not in self._pool.ask("has", name=name)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment, or what a method gives; only plain data can leave a worker."""
        return self.call(name)

    def set_attr(self, name: str, values: Any, rows: Sequence[int] | None = None) -> None:
        """Set an attribute of each environment, or of those of ``rows``: a list with a value each, or one value for all."""
        rows = range(self.num_envs) if rows is None else rows
        if not isinstance(values, list | tuple):
            values = [values] * len(rows)
        if len(values) != len(rows):
            raise ConfigError(f"values must be one or a list of {len(rows)}, got {len(values)}")
        self._pool.ask_rows("set", rows, values, name=name)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of each environment with plain data, or read an attribute; it must give plain data too.

        It is looked for in the environment's wrappers first, then in what they wrap.
        """
        return self.call_rows(range(self.num_envs), name, *args, **kwargs)

    def call_rows(self, rows: Sequence[int], name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of some environments, or read an attribute."""
        return tuple(self._pool.ask_rows("call", rows, name=name, args=list(args), kwargs=kwargs))

    def expert_actions(self) -> Any:
        """What the expert of the settings would do now in each environment: a batch of actions, boxes clipped.

        Raises:
            EnvironmentFailure: the expert raised an exception, or what it gave is not an action.
        """
        space = self._pool.description["action_space"]
        return join(space, iter(checked_actions(self.settings.id, space, self._pool.ask("expert"))))

    def diagnostics(self) -> dict[str, Any]:
        """Counts of what is out of order, over all environments.

        Returns:
            ``steps``, ``observations_outside_space``, ``nonfinite_rewards``, ``vector_rewards``; ``step_values``: how many
            values a step of the library gives (4 for old Gym); ``max_episode_steps`` and ``time_limit_is_default``.
        """
        return self._pool.diagnostics()

    def close_extras(self, **kwargs: Any) -> None:
        """End the workers."""
        self._pool.close()

    def _result(self, step: Step) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        info = vector_info(step.infos)
        if step.final_observations:
            info.update(self._final_info(step))
        terminated, truncated = step.ends
        return self._observation(step.observations), step.rewards, terminated, truncated, info

    def _observation(self, parts: list[Any]) -> Any:
        batched = (tuple(part) if isinstance(part, list) else part for part in parts)
        return join(self._pool.description["observation_space"], batched)

    def _final_info(self, step: Step) -> dict[str, Any]:
        ended = step.ends.any(axis=0)
        observations = np.full(len(step.rewards), None, object)
        for index in np.flatnonzero(ended):
            parts = iter([part[index] for part in step.final_observations])
            observations[index] = join(self._pool.description["observation_space"], parts)
        infos = vector_info(step.final_infos)
        return {"final_obs": observations, "_final_obs": ended, "final_info": infos, "_final_info": ended.copy()}

    def __getstate__(self) -> dict[str, Any]:
        names = ("settings", "num_envs", "num_workers", "autoreset_mode")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        settings, num_envs = state.pop("settings"), state.pop("num_envs")
        self.__init__(settings, num_envs, **state)  # type: ignore[misc]


class _NoMask(ConfigError, TypeError):
    """A reset mask that is not an array of truth values: Gymnasium raises ``TypeError``."""


def _checked_mask(mask: Any, num_envs: int) -> np.ndarray:
    name = "`options['reset_mask']`"
    if not isinstance(mask, np.ndarray):
        raise _NoMask(f"{name} must be a numpy array, got {type(mask)}")
    if mask.shape != (num_envs,):
        raise ConfigError(f"{name} must have shape `({num_envs},)`, got {mask.shape}")
    if mask.dtype != bool:
        raise _NoMask(f"{name} must have `dtype=np.bool_`, got {mask.dtype}")
    if not mask.any():
        raise ConfigError(f"{name} must contain a boolean array with at least one True value, got reset_mask={mask}")
    return mask


def _metadata(pool: WorkerPool) -> dict[str, Any]:
    description = pool.description
    return {"render_modes": description["render_modes"], "render_fps": description["render_fps"] or 30}


def _spec(pool: WorkerPool) -> EnvSpec | None:
    settings = pool.settings
    kwargs = {**settings.kwargs, "render_mode": settings.render_mode}
    make = functools.partial(_make_again, settings)
    return gymnasium_spec(settings.name, make, pool.description["max_episode_steps"], kwargs)


def _make_again(settings: RemoteSettings, render_mode: str | None = None, **kwargs: Any) -> RemoteEnv:
    return RemoteEnv(dataclasses.replace(settings, render_mode=render_mode, kwargs=kwargs))
