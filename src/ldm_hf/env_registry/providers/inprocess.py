"""Libraries that are importable in this Python process."""

import functools
import importlib
import importlib.metadata
import os
import re
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError

from ldm_hf.env_registry.library.manifest import Manifest
from ldm_hf.env_registry.spec import gymnasium_spec
from ldm_hf.env_registry.worker.attributes import get_attribute, set_attribute
from ldm_hf.env_registry.worker.compatibility import Environment, rendering, renders, resolve
from ldm_hf.env_registry.worker.fitting import IncompatibleValueError, fit
from ldm_hf.errors import ConfigError, EnvironmentFailure, failures_of
from ldm_hf.modeling.spaces_ldm import space_from_json

Vectorization = Literal["sync", "async"]


class InProcessProvider:
    """Environments of a library that is imported here: no start-up, no isolation, this process's own versions."""

    name = "inprocess"

    def __init__(self, manifest: Manifest) -> None:
        """Know the library; nothing is imported."""
        self.manifest = manifest

    def load(self) -> None:
        """Import the library, so that it registers its environments.

        Raises:
            EnvironmentFailure: it is not installed (the message holds the pip command) or its import fails.
        """
        install = self.manifest.install_command()
        if install is not None:
            raise EnvironmentFailure(f"the library {self.manifest.slug!r} is not installed here; try: {install}")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        with failures_of(f"the library {self.manifest.slug!r}", "could not be imported"):
            for module in self.manifest.modules:
                importlib.import_module(module)
            for function in self.manifest.register:
                _register_once(function)

    def version(self) -> str:
        """Version of the installed library; empty if it is not an installed distribution."""
        distribution = re.match(r"[\w.-]+", self.manifest.requirements[0])
        try:
            return importlib.metadata.version(distribution[0]) if distribution else ""
        except importlib.metadata.PackageNotFoundError:
            return ""

    def make(
        self, name: str, *, entry_point: str, max_episode_steps: int | None, default_limit: bool, **kwargs: Any
    ) -> gymnasium.Env:
        """Make one environment with a time limit; ``kwargs`` go to its constructor.

        Args:
            name: its id without the library.
            entry_point: what the library makes it from, for packages that it needs beside the library.
            max_episode_steps: None takes the library's own.
            default_limit: the library has none, so that the manifest's is taken.
            **kwargs: for the environment's constructor.
        """
        self.load()
        environment = f"{self.manifest.slug}/{name}"
        install = self.manifest.install_command(entry_point)
        if install is not None:
            raise EnvironmentFailure(f"{environment} needs packages that are not installed here; try: {install}")
        if max_episode_steps is None and default_limit:
            max_episode_steps = self.manifest.default_max_episode_steps
        recipe = self.manifest.recipe(name)
        arguments = self.manifest.arguments_of(name)
        with failures_of(environment, "could not be made"):
            registered = gymnasium.registry.get(name)
            translated = recipe["entry_point"] or recipe["reward_weights"] or recipe["texts"] or arguments
            if registered is not None and not translated:
                # Observations outside their declared space are common: the checker would warn at each of them.
                env = gymnasium.make(name, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs)
            else:
                env = TranslatedEnv(
                    {**recipe, "max_episode_steps": max_episode_steps, "kwargs": {**arguments, **kwargs}}
                )
        mode = kwargs.get("render_mode")
        if not renders(env, mode):
            env.close()
            modes = rendering(env)[0]
            raise ConfigError(f"{environment}: render_mode must be one of {', '.join(modes)}, got {mode!r}")
        return FittedObservation(env)

    def make_vec(
        self,
        name: str,
        num_envs: int,
        *,
        vectorization: Vectorization,
        autoreset_mode: gymnasium.vector.AutoresetMode,
        **kwargs: Any,
    ) -> gymnasium.vector.VectorEnv:
        """Make ``num_envs`` copies of an environment behind one Gymnasium vector environment."""
        if num_envs < 1:
            raise ConfigError(f"num_envs must be at least 1, got {num_envs}")
        vector_class = {"sync": gymnasium.vector.SyncVectorEnv, "async": gymnasium.vector.AsyncVectorEnv}
        if vectorization not in vector_class:
            raise ConfigError(f"vectorization must be 'sync' or 'async', got {vectorization!r}")
        make_one = functools.partial(self.make, name, **kwargs)
        with failures_of(f"{num_envs} copies of {self.manifest.slug}/{name}", "could not be made"):
            envs = vector_class[vectorization]([make_one] * num_envs, autoreset_mode=autoreset_mode)
        envs.spec = envs.envs[0].spec if isinstance(envs, gymnasium.vector.SyncVectorEnv) else envs.get_attr("spec")[0]
        return envs


class FittedObservation(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """Observations in the dtype of their space, exactly as the environment gave them.

    Lists and arrays of other frameworks become arrays, floats may be rounded. What a dtype cannot hold (300.7 as uint8) is
    an ``EnvironmentFailure``: stored in a batch, it would become another value.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        """Wrap an environment."""
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._fit(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take an action."""
        observation, *rest = self.env.step(action)
        return self._fit(observation), *rest

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set an attribute of the environment, which would not see one of this wrapper."""
        return self.env.set_wrapper_attr(name, value, force=force)

    def _fit(self, observation: Any) -> Any:
        try:
            return _fitted(self.observation_space, observation, "observation")
        except IncompatibleValueError as error:
            name = self.spec.id if self.spec is not None else type(self.unwrapped).__name__
            raise EnvironmentFailure(f"{name}: {error}") from None


def _fitted(space: spaces.Space, value: Any, where: str) -> Any:
    """A value of a space whose arrays have the space's dtype."""
    if isinstance(space, spaces.Dict):
        return {key: _fitted(part, value[key], f"{where}[{key!r}]") for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        parts = enumerate(zip(space.spaces, value, strict=True))
        return tuple(_fitted(part, one, f"{where}[{index}]") for index, (part, one) in parts)
    if isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        fits = isinstance(value, np.ndarray) and value.dtype == space.dtype
        return value if fits else fit(value, np.dtype(space.dtype), where)
    if isinstance(space, spaces.Discrete) and not isinstance(value, int | np.integer):
        return fit(value, np.dtype(np.int64), where)[()]
    return value


class TranslatedEnv(gymnasium.Env):
    """An environment of another API than Gymnasium's, or one that its library does not register, as Gymnasium's."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        """Make the environment of a recipe, see ``Manifest.recipe``."""
        kwargs = dict(recipe["kwargs"])
        self.render_mode = kwargs.pop("render_mode", None)
        self._environment = Environment({**recipe, "kwargs": kwargs, "render_mode": self.render_mode})
        self._closed = False
        modes, fps = rendering(self._environment.env)
        self.metadata = {"render_modes": modes, "render_fps": fps or 30}
        make = functools.partial(_make_translated, recipe)
        self.spec = gymnasium_spec(recipe["name"], make, self._environment.max_episode_steps, recipe["kwargs"])
        self.observation_space = space_from_json(self._environment.observation_space)
        self.action_space = space_from_json(self._environment.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; ``ClosedEnvironmentError`` after ``close``."""
        self._refuse_when_closed()
        super().reset(seed=seed)
        return self._environment.reset(seed, options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action; ``ClosedEnvironmentError`` after ``close``."""
        self._refuse_when_closed()
        return self._environment.step(
            int(action) if isinstance(self.action_space, gymnasium.spaces.Discrete) else action
        )

    def render(self) -> Any:
        """An image as uint8 of shape (height, width, 3), a text or a list of these, as the render mode says; or None."""
        return self._environment.render()

    @property
    def np_random_seed(self) -> int:
        """Seed of the library's environment, where it tells; otherwise that of the last reset."""
        try:
            return get_attribute(self._environment.env, "np_random_seed")
        except AttributeError:
            return super().np_random_seed

    def has_wrapper_attr(self, name: str) -> bool:
        """Whether this, the library's environment or what its wrappers wrap has an attribute."""
        try:
            self.get_wrapper_attr(name)
        except AttributeError:
            return False
        return True

    def get_wrapper_attr(self, name: str) -> Any:
        """An attribute of this, of the library's environment or of what its wrappers wrap."""
        return getattr(self, name) if hasattr(self, name) else get_attribute(self._environment.env, name)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set an attribute of the library's environment; without ``force``, only if it has that already."""
        if not force and not self.has_wrapper_attr(name):
            return False
        set_attribute(self._environment.env, name, value)
        return True

    def close(self) -> None:
        """Close the library's environment."""
        if not self._closed:
            self._environment.env.close()
        self._closed = True

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError("the environment is closed")


def _make_translated(recipe: dict[str, Any], **kwargs: Any) -> TranslatedEnv:
    return TranslatedEnv({**recipe, "kwargs": kwargs})


@functools.cache
def _register_once(function: str) -> None:
    resolve(function)()
