"""What is known of an environment and of a library, as plain data."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EnvironmentRecord:
    """One line of a list of environments; known without making the environment.

    Attributes:
        id: ``<library slug>/<Gymnasium id>``.
        max_episode_steps: steps after which ``make`` truncates an episode.
        time_limit_is_default: the library registers no limit, so this one is the manifest's.
        install: the pip command that installs what the environment lacks here; None if it can be made.
    """

    id: str
    max_episode_steps: int
    time_limit_is_default: bool
    install: str | None


@dataclass(frozen=True)
class EnvironmentSpec:
    """What a user of one environment needs to know; found by making it once.

    Attributes:
        id: ``<library slug>/<Gymnasium id>``.
        observation_space: the space as JSON, see ``ldm_hf.modeling.spaces_ldm``.
        action_space: the space as JSON.
        max_episode_steps: steps after which ``make`` truncates an episode.
        time_limit_is_default: the library registers no limit, so this one is the manifest's.
        kwargs: what the library registers for the constructor; ``make`` takes others.
        reward_threshold: the return at which the library calls the environment solved.
        nondeterministic: the library says that a seed does not fix the environment.
        render_modes: what ``render_mode`` can be.
        library_version: of the installed package; None if it is no installed distribution.
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
    render_modes: tuple[str, ...]
    library_version: str | None
    requirements: tuple[str, ...]
    licence: str
    homepage: str


@dataclass(frozen=True)
class LibraryRecord:
    """One line of a list of libraries.

    Attributes:
        slug: first part of the ids of its environments.
        num_environments: how many ``list_environments`` gives; 0 where the library cannot be imported.
        problem: why its environments cannot be used here, with the command that helps; None if they can.
        requirements: what pip installs to get the library.
        python: the versions of Python that the library takes.
        licence: SPDX expression.
        homepage: address of its documentation.
    """

    slug: str
    num_environments: int
    problem: str | None
    requirements: tuple[str, ...]
    python: str
    licence: str
    homepage: str
