"""Trying one environment out, in a worker of its own: what ``ldm env add`` and ``ldm env check`` know of it."""

import json
import re
import time
from dataclasses import replace
from typing import Any

import numpy as np

from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.library.report import EnvironmentReport
from ldm_hf.env_registry.providers.base import IsolatedProvider, Limits
from ldm_hf.env_registry.remote.vector_env import RemoteEnv
from ldm_hf.env_registry.remote.worker_batch import RemoteSettings
from ldm_hf.env_registry.worker.space_tree import split
from ldm_hf.errors import EnvironmentFailure, LDMError
from ldm_hf.modeling.spaces_ldm import SlotLayout, UnsupportedSpaceError

NUM_STEPS = 1000
"""Random steps that an environment must take to be validated."""

_NUM_COMPARED = 100  # steps that are repeated to see whether a seed fixes an environment
_SEED = 1


def validate(
    provider: IsolatedProvider, found: EnvironmentReport, *, timeout: float, limits: Limits = Limits()
) -> EnvironmentReport:
    """Make an environment, reset it and step it at random.

    Args:
        provider: its library's installation.
        found: what discovery knows of it.
        timeout: seconds that all of it may take.
        limits: what its worker may use.

    Returns:
        The report; ``failure`` says what went wrong. Nothing that the environment does is raised.
    """
    deadline = time.monotonic() + timeout
    try:
        EnvironmentId(provider.manifest.slug, found.name)
        settings = RemoteSettings(provider, found.name, limits=limits, step_timeout=timeout, start_timeout=timeout)
        env = RemoteEnv(settings)
    except LDMError as error:
        return replace(found, failure=_reason(str(error)))
    try:
        return _try_out(env, found, deadline)
    except Exception as error:  # A space that cannot be sampled, for one: the environment is to blame.
        reason = str(error) if isinstance(error, LDMError) else f"{type(error).__name__}: {error}"
        return replace(found, failure=_reason(reason))
    finally:
        env.close()


def _reason(text: str) -> str:
    """One line, without the places where this machine keeps things."""
    return re.sub(r"/[^\s'\"]*/(?=site-packages/)|/[^\s'\"]*/ldm-worker-[^/]*/run/", "", " ".join(text.split()))


def _try_out(env: RemoteEnv, found: EnvironmentReport, deadline: float) -> EnvironmentReport:
    env.action_space.seed(_SEED)
    steps = nonfinite = 0
    spent = 0.0
    observation: Any = None
    while steps < NUM_STEPS:
        start = time.monotonic()
        observation, _ = env.reset(seed=_SEED + steps)
        ended = False
        while not ended and steps < NUM_STEPS:
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            ended = terminated or truncated
            steps += 1
            nonfinite += not _is_finite(env, observation)
            if time.monotonic() > deadline:
                raise EnvironmentFailure(f"took {steps} of {NUM_STEPS} random steps in the time allowed")
        spent += time.monotonic() - start
    seen = env.diagnostics()
    first, second = _trajectory(env, deadline), _trajectory(env, deadline)
    described = env.describe()
    return replace(
        found,
        observation_space=described["observation_space"],
        action_space=described["action_space"],
        max_episode_steps=described["max_episode_steps"],
        time_limit_is_default=described["time_limit_is_default"],
        deterministic=all(np.array_equal(one, two, equal_nan=True) for one, two in zip(first, second, strict=True))
        if len(first) == len(second)
        else False,
        steps=steps,
        steps_per_second=float(f"{steps / spent:.3g}"),
        observations_outside_space=seen["observations_outside_space"],
        nonfinite_observations=nonfinite,
        nonfinite_rewards=seen["nonfinite_rewards"],
        vector_rewards=seen["vector_rewards"],
        step_values=seen["step_values"],
        problems=tuple(problems(described)),
        render_modes=tuple(described["render_modes"]),
        kwargs=json.loads(json.dumps(described["kwargs"] or {}, default=np.ndarray.tolist)),
    )


def problems(described: dict[str, Any]) -> list[str]:
    """Why an environment does not fit a model of the paper's limits, one line a space."""
    found = []
    for role in ("observation", "action"):
        try:
            SlotLayout.of(described[f"{role}_space"], role=role)
        except UnsupportedSpaceError as error:
            found.append(f"{role}: {error}")
    return found


def _trajectory(env: RemoteEnv, deadline: float) -> list[np.ndarray]:
    """Observations and rewards of a seeded episode under seeded actions, one array a leaf and step."""
    env.action_space.seed(_SEED)
    observation, _ = env.reset(seed=_SEED)
    seen = _numbers(env, observation)
    for _ in range(_NUM_COMPARED):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        seen += [*_numbers(env, observation), np.array(reward)]
        if terminated or truncated or time.monotonic() > deadline:
            break
    return seen


def _numbers(env: RemoteEnv, observation: Any) -> list[np.ndarray]:
    parts = [
        np.asarray(part) for part in split(env.describe()["observation_space"], observation) if not _is_nested(part)
    ]
    return [part for part in parts if part.dtype.kind in "biufc"]


def _is_nested(part: Any) -> bool:
    return isinstance(part, tuple | dict | str)


def _is_finite(env: RemoteEnv, observation: Any) -> bool:
    return all(bool(np.isfinite(part).all()) for part in _numbers(env, observation))
