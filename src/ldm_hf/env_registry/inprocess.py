"""Libraries that are importable in this Python process."""

import contextlib
import functools
import importlib
import importlib.metadata
import os
import re
from collections.abc import Iterator
from typing import Any, Literal

import gymnasium

from ldm_hf.env_registry.isolated.translation import Environment, resolve
from ldm_hf.env_registry.manifest import Manifest
from ldm_hf.errors import ConfigError, EnvironmentFailure
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
        with _failures_of(f"the library {self.manifest.slug!r}", "imported"):
            for module in self.manifest.modules:
                importlib.import_module(module)
            for function in self.manifest.register:
                _register_once(function)

    def version(self) -> str:
        """Version of the installed library; empty if it is no installed distribution."""
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
        with _failures_of(environment, "made"):
            registered = gymnasium.registry.get(name)
            if registered is not None and not (recipe["entry_point"] or recipe["reward_weights"] or arguments):
                # Observations outside their declared space are common: the checker would warn at each of them.
                return gymnasium.make(name, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs)
            return TranslatedEnv({**recipe, "max_episode_steps": max_episode_steps, "kwargs": {**arguments, **kwargs}})

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
        with _failures_of(f"{num_envs} copies of {self.manifest.slug}/{name}", "made"):
            return vector_class[vectorization]([make_one] * num_envs, autoreset_mode=autoreset_mode)


class TranslatedEnv(gymnasium.Env):
    """An environment of another API than Gymnasium's, or one that its library does not register, as Gymnasium's."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        """Make the environment of a recipe, see ``Manifest.recipe``."""
        self._environment = Environment({"render_mode": None, **recipe})
        self.render_mode = recipe.get("render_mode") or recipe["kwargs"].get("render_mode")
        self.observation_space = space_from_json(self._environment.observation_space)
        self.action_space = space_from_json(self._environment.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        return self._environment.reset(seed, options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action."""
        return self._environment.step(
            int(action) if isinstance(self.action_space, gymnasium.spaces.Discrete) else action
        )

    def render(self) -> Any:
        """A picture as uint8 of shape (height, width, 3), or None."""
        return self._environment.render()

    def close(self) -> None:
        """Close the library's environment."""
        self._environment.env.close()


@functools.cache
def _register_once(function: str) -> None:
    resolve(function)()


@contextlib.contextmanager
def _failures_of(subject: str, verb: str) -> Iterator[None]:
    """Turn whatever third-party code raises into an ``EnvironmentFailure`` of one line."""
    try:
        yield
    except (ConfigError, EnvironmentFailure):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise EnvironmentFailure(f"{subject} could not be {verb}: {type(error).__name__}: {reason}") from error
