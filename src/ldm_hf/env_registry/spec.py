"""What is known of an environment and of a library, as plain data."""

from dataclasses import dataclass
from typing import Any


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
