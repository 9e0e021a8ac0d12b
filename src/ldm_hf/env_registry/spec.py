"""What is known of an environment and of a library, as plain data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec


@dataclass(frozen=True)
class EnvironmentSpec:
    """What a user of one environment needs to know; found when it was validated.

    Attributes:
        id: ``<library slug>/<Gymnasium id>``.
        observation_space: the space as JSON, see ``ldm_hf.modeling.spaces_ldm``.
        action_space: the space as JSON.
        max_episode_steps: steps after which ``make`` truncates an episode.
        time_limit_is_default: the library registers no limit, so this one is the manifest's.
        kwargs: what the library registers for the constructor; ``make`` takes others.
        reward_threshold: the return at which the library calls the environment solved.
        nondeterministic: the library says that a seed does not fix the environment.
        deterministic: the same seed and actions gave the same observations and rewards twice.
        problems: why it does not fit a model of the paper's limits, one line a space; empty if it fits.
        steps_per_second: of random steps, one environment, one core.
        render_modes: what ``render_mode`` can be.
        library_version: of the library that was validated.
        requirements: what pip installs to get the environment.
        licence: SPDX expression of the library.
        homepage: of the library.
    """

    id: str
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    max_episode_steps: int
    time_limit_is_default: bool
    kwargs: dict[str, Any]
    reward_threshold: float | None
    nondeterministic: bool
    deterministic: bool
    problems: tuple[str, ...]
    steps_per_second: float
    render_modes: tuple[str, ...]
    library_version: str
    requirements: tuple[str, ...]
    licence: str
    homepage: str


@dataclass(frozen=True)
class LibraryRecord:
    """One line of a list of libraries.

    Attributes:
        slug: first part of the ids of its environments.
        num_environments: how many ``list_environments`` gives.
        importable: whether the library can be imported in this process.
        requirements: what pip installs to get the library.
        python: version of Python of its isolated installation.
        licence: SPDX expression.
        homepage: address of its documentation.
    """

    slug: str
    num_environments: int
    importable: bool
    requirements: tuple[str, ...]
    python: str
    licence: str
    homepage: str


def gymnasium_spec(
    name: str, make: Callable[..., gymnasium.Env], max_episode_steps: int, kwargs: dict[str, Any]
) -> EnvSpec | None:
    """What Gymnasium's tools ask of an environment; ``gymnasium.make`` makes another one of it.

    Args:
        name: the environment's id without its library; None comes of one that Gymnasium does not allow.
        make: makes another one, given ``kwargs``.
        max_episode_steps: steps after which an episode is truncated.
        kwargs: of the constructor, the render mode among them.
    """
    try:
        return EnvSpec(
            name, entry_point=make, max_episode_steps=max_episode_steps, disable_env_checker=True, kwargs=kwargs
        )
    except gymnasium.error.Error:
        return None
