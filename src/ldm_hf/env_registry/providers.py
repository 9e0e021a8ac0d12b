"""Where environments run. A provider serves one library: it lists its environments, describes them and makes them."""

import contextlib
import fnmatch
import functools
import importlib
import importlib.metadata
import os
import re
from collections.abc import Iterator
from typing import Any, Literal

import gymnasium
from gymnasium.envs.registration import EnvSpec

from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.manifest import Manifest
from ldm_hf.env_registry.spec import EnvironmentRecord, EnvironmentSpec
from ldm_hf.errors import ConfigError, EnvironmentFailure, UnknownEnvironmentError
from ldm_hf.modeling.spaces_ldm import space_to_json

Vectorization = Literal["sync", "async"]


class InProcessProvider:
    """Environments of a library that is importable in this Python process."""

    def __init__(self, manifest: Manifest) -> None:
        """Import the library, so that it registers its environments.

        Raises:
            EnvironmentFailure: it is not installed (the message holds the pip command) or its import fails.
        """
        self.manifest = manifest
        install = manifest.install_command()
        if install is not None:
            raise EnvironmentFailure(f"the library {manifest.slug!r} is not installed here; try: {install}")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        for module in manifest.modules:
            with _failures_of(f"the library {manifest.slug!r}", "imported"):
                importlib.import_module(module)

    def records(self, *, all_versions: bool) -> list[EnvironmentRecord]:
        """One record an environment, sorted by id; unless ``all_versions``, only what nothing newer replaces."""
        specs = [spec for spec in gymnasium.registry.values() if self._owns(spec)]
        if not all_versions:
            newest: dict[tuple[str | None, str], int] = {}
            for spec in specs:
                key = (spec.namespace, spec.name)
                newest[key] = max(newest.get(key, 0), spec.version or 0)
            specs = [
                spec
                for spec in specs
                if (spec.version or 0) == newest[spec.namespace, spec.name]
                and not any(fnmatch.fnmatchcase(spec.id, pattern) for pattern in self.manifest.superseded)
            ]
        records = [
            EnvironmentRecord(
                str(EnvironmentId(self.manifest.slug, spec.id)),
                spec.max_episode_steps or self.manifest.default_max_episode_steps,
                spec.max_episode_steps is None,
                self.manifest.install_command(_entry_point(spec)),
            )
            for spec in specs
        ]
        return sorted(records, key=lambda record: record.id)

    def spec(self, name: str) -> EnvironmentSpec:
        """Describe an environment; it is made once, because only then its spaces are known."""
        spec = self.registration(name)
        env = self.make(name)
        try:
            return EnvironmentSpec(
                id=str(EnvironmentId(self.manifest.slug, name)),
                observation_space=space_to_json(env.observation_space),
                action_space=space_to_json(env.action_space),
                max_episode_steps=spec.max_episode_steps or self.manifest.default_max_episode_steps,
                time_limit_is_default=spec.max_episode_steps is None,
                kwargs=dict(spec.kwargs),
                reward_threshold=spec.reward_threshold,
                nondeterministic=spec.nondeterministic,
                render_modes=tuple(mode for mode in env.metadata.get("render_modes") or () if mode),
                library_version=_version(self.manifest.requirements[0]),
                requirements=self.manifest.requirements_of(_entry_point(spec)),
                licence=self.manifest.licence,
                homepage=self.manifest.homepage,
            )
        finally:
            env.close()

    def make(self, name: str, *, max_episode_steps: int | None = None, **kwargs: Any) -> gymnasium.Env:
        """Make one environment with a time limit; ``kwargs`` go to its constructor."""
        spec = self.registration(name)
        environment = EnvironmentId(self.manifest.slug, name)
        if max_episode_steps is None:
            max_episode_steps = spec.max_episode_steps or self.manifest.default_max_episode_steps
        if max_episode_steps < 1:
            raise ConfigError(f"max_episode_steps must be at least 1, got {max_episode_steps}")
        install = self.manifest.install_command(_entry_point(spec))
        if install is not None:
            raise EnvironmentFailure(f"{environment} needs packages that are not installed here; try: {install}")
        with _failures_of(str(environment), "made"):
            # Observations outside their declared space are common: the checker would warn at each of them.
            return gymnasium.make(name, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs)

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
        with _failures_of(f"{num_envs} copies of {EnvironmentId(self.manifest.slug, name)}", "made"):
            return vector_class[vectorization]([make_one] * num_envs, autoreset_mode=autoreset_mode)

    def registration(self, name: str) -> EnvSpec:
        """What the library registers under a Gymnasium id; ``UnknownEnvironmentError`` where it registers nothing."""
        spec = gymnasium.registry.get(name)
        if spec is None or not self._owns(spec):
            raise UnknownEnvironmentError(f"{self.manifest.slug} has no environment {name!r}")
        return spec

    def _owns(self, spec: EnvSpec) -> bool:
        entry_point = _entry_point(spec)
        package = entry_point.partition(":")[0].partition(".")[0]
        return package in self.manifest.packages and not entry_point.startswith(self.manifest.broken_entry_points)


@contextlib.contextmanager
def _failures_of(subject: str, verb: str) -> Iterator[None]:
    """Turn whatever third-party code raises into an ``EnvironmentFailure`` of one line."""
    try:
        yield
    except (ConfigError, EnvironmentFailure, UnknownEnvironmentError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise EnvironmentFailure(f"{subject} could not be {verb}: {type(error).__name__}: {reason}") from error


def _entry_point(spec: EnvSpec) -> str:
    """The entry point as ``module:name``; empty where only a vector environment is registered."""
    entry_point = spec.entry_point
    if entry_point is None or isinstance(entry_point, str):
        return entry_point or ""
    return f"{entry_point.__module__}:{getattr(entry_point, '__qualname__', '')}"


def _version(requirement: str) -> str | None:
    distribution = re.match(r"[\w.-]+", requirement)
    try:
        return importlib.metadata.version(distribution[0]) if distribution else None
    except importlib.metadata.PackageNotFoundError:
        return None
