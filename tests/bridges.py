"""The providers that the tests of the bridge run against: this process, a worker, a container."""

import dataclasses
from typing import Any

import gymnasium
import pytest
from gymnasium.vector import AutoresetMode

from ldm_hf.env_registry.library.manifest import EntryPoint
from ldm_hf.env_registry.providers.docker import DockerProvider
from ldm_hf.env_registry.providers.inprocess import InProcessProvider
from ldm_hf.env_registry.remote.vector_env import RemoteEnv, RemoteVectorEnv
from ldm_hf.env_registry.remote.worker_batch import RemoteSettings
from test_docker import HOSTILE, PROBLEM, REQUIRED
from test_remote_env import ODD, TESTS, Here

ISOLATED = ("venv", "docker")
BRIDGES = ("inprocess", *ISOLATED)


def provider(name: str) -> Any:
    """A provider of the library ``tests/hostile``, built; skips the test where there are no containers."""
    if name == "inprocess":
        pytest.MonkeyPatch().syspath_prepend(str(TESTS / "hostile"))
        return InProcessProvider(dataclasses.replace(ODD, modules=("ldm_behaved",)))
    if name == "venv":
        return Here(ODD)
    if PROBLEM is not None:
        (pytest.fail if REQUIRED else pytest.skip)(f"no containers here: {PROBLEM}; see docs/docker.md")
    docker = DockerProvider(HOSTILE)
    docker.build()
    return docker


def make(bridge: str, name: str = "Clock", **settings: Any) -> gymnasium.Env:
    """One environment of ``tests/hostile/ldm_behaved.py``."""
    name, chosen = f"Behaved/{name}-v0", provider(bridge)
    if bridge != "inprocess":
        return RemoteEnv(RemoteSettings(chosen, name, **settings))
    kwargs = settings.pop("kwargs", {})
    settings = {"max_episode_steps": None, **settings}
    return chosen.make(name, entry_point="", default_limit=False, **settings, **kwargs)


def make_vec(
    bridge: str,
    num_envs: int = 3,
    name: str = "Clock",
    mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    num_workers: int = 2,
    **settings: Any,
) -> gymnasium.vector.VectorEnv:
    """Several of them."""
    name, chosen = f"Behaved/{name}-v0", provider(bridge)
    if bridge != "inprocess":
        made = RemoteSettings(chosen, name, **settings)
        return RemoteVectorEnv(made, num_envs, num_workers=min(num_workers, num_envs), autoreset_mode=mode)
    kwargs = settings.pop("kwargs", {})
    fixed = {"entry_point": "", "default_limit": False, "max_episode_steps": None}
    return chosen.make_vec(name, num_envs, vectorization="sync", autoreset_mode=mode, **{**fixed, **settings, **kwargs})


def make_functions(
    bridge: str, functions: str, num_envs: int, mode: AutoresetMode, render_mode: str | None
) -> gymnasium.vector.VectorEnv:
    """The environments that pickled functions make, one each: what Gymnasium's own tests define."""
    chosen = provider(bridge)
    if bridge == "docker":  # The functions' modules import pytest, and some of them render.
        needed = (*HOSTILE.requirements, f"gymnasium[classic-control]=={gymnasium.__version__}", "pytest")
        chosen = DockerProvider(dataclasses.replace(HOSTILE, slug="gymnasium-tests", requirements=needed))
        chosen.build()
    entry = EntryPoint("functions", "ldm_behaved:unpickled", kwargs={"functions": functions})
    chosen.manifest = dataclasses.replace(chosen.manifest, entry_points=(entry,))
    if bridge != "inprocess":
        return RemoteVectorEnv(RemoteSettings(chosen, "functions", render_mode), num_envs, autoreset_mode=mode)
    fixed = {"entry_point": "", "default_limit": False, "max_episode_steps": None, "render_mode": render_mode}
    return chosen.make_vec("functions", num_envs, vectorization="sync", autoreset_mode=mode, **fixed)
