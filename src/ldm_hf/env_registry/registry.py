"""Find and make environments by id: ``list_environments``, ``spec``, ``make`` and ``make_vec``."""

import difflib
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode

from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.manifest import Manifest, load_manifests
from ldm_hf.env_registry.providers import InProcessProvider, Vectorization
from ldm_hf.env_registry.spec import EnvironmentRecord, EnvironmentSpec, LibraryRecord
from ldm_hf.errors import ConfigError, EnvironmentFailure, UnknownEnvironmentError

_MAX_SUGGESTIONS = 3


def list_libraries() -> list[LibraryRecord]:
    """The libraries that have a manifest, in alphabetical order, whether they can be used here or not."""
    return [_library_record(manifest) for manifest in load_manifests().values()]


def list_environments(library: str | None = None, *, all_versions: bool = False) -> list[EnvironmentRecord]:
    """List environments without making them, sorted by id.

    Args:
        library: slug of the library; by default every library that can be imported here.
        all_versions: also list older versions and what else a newer environment replaces.

    Raises:
        UnknownEnvironmentError: no library has this slug.
        EnvironmentFailure: the library asked for cannot be imported; the message says how to install it.
    """
    if library is not None:
        return InProcessProvider(_manifest(library)).records(all_versions=all_versions)
    records = []
    for manifest in load_manifests().values():
        try:
            records += InProcessProvider(manifest).records(all_versions=all_versions)
        except EnvironmentFailure:  # `list_libraries` tells which, and why.
            continue
    return records


def spec(environment: str) -> EnvironmentSpec:
    """Describe an environment; it is made once for this, because only then its spaces are known.

    Raises:
        UnknownEnvironmentError: no environment has this id; the message suggests the nearest.
        EnvironmentFailure: it cannot be made here; the message says why.
    """
    provider, name = _find(environment)
    return provider.spec(name)


def make(
    environment: str, *, render_mode: str | None = None, max_episode_steps: int | None = None, **kwargs: Any
) -> gymnasium.Env:
    """Make an environment that always has a time limit.

    Args:
        environment: ``<library slug>/<Gymnasium id>``.
        render_mode: as in ``gymnasium.make``.
        max_episode_steps: steps after which an episode is truncated. By default what the library registers or, where
            it registers nothing, the library's default (1000 unless its manifest says otherwise); see ``spec``.
        **kwargs: for the environment's constructor.

    Raises:
        UnknownEnvironmentError: no environment has this id; the message suggests the nearest.
        EnvironmentFailure: it cannot be made here; the message says why and, for a missing package, how to install it.
        ConfigError: ``max_episode_steps`` is below 1.
    """
    provider, name = _find(environment)
    return provider.make(name, max_episode_steps=max_episode_steps, **_constructor_arguments(render_mode, kwargs))


def make_vec(
    environment: str,
    num_envs: int,
    *,
    vectorization: Vectorization = "sync",
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    render_mode: str | None = None,
    max_episode_steps: int | None = None,
    **kwargs: Any,
) -> gymnasium.vector.VectorEnv:
    """Make several copies of an environment behind one Gymnasium vector environment, each with a time limit.

    Args:
        environment: ``<library slug>/<Gymnasium id>``.
        num_envs: how many copies.
        vectorization: ``"sync"`` steps them one after another in this process, ``"async"`` each in its own process.
        autoreset_mode: when a finished copy is reset. The default ``SameStep`` returns the first observation of the
            next episode from the step that ends one, and the last one as ``info["final_obs"]``: every step is a
            transition. Gymnasium's own default ``NextStep`` spends a step on the reset and ignores its action.
        render_mode: as in ``gymnasium.make``.
        max_episode_steps: as in ``make``.
        **kwargs: for the environment's constructor.

    Raises:
        UnknownEnvironmentError, EnvironmentFailure: as ``make``.
        ConfigError: ``num_envs`` or ``max_episode_steps`` is below 1, or a mode does not exist.
    """
    try:
        mode = AutoresetMode(autoreset_mode)
    except ValueError as error:
        modes = ", ".join(repr(known.value) for known in AutoresetMode)
        raise ConfigError(f"autoreset_mode must be one of {modes}, got {autoreset_mode!r}") from error
    provider, name = _find(environment)
    return provider.make_vec(
        name,
        num_envs,
        vectorization=vectorization,
        autoreset_mode=mode,
        max_episode_steps=max_episode_steps,
        **_constructor_arguments(render_mode, kwargs),
    )


def _constructor_arguments(render_mode: str | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    # An environment that never renders may take no such argument at all.
    return kwargs if render_mode is None else {"render_mode": render_mode, **kwargs}


def _manifest(library: str) -> Manifest:
    manifests = load_manifests()
    if library not in manifests:
        raise UnknownEnvironmentError(f"no library is called {library!r}; there are: {', '.join(manifests)}")
    return manifests[library]


def _find(environment: str) -> tuple[InProcessProvider, str]:
    try:
        parsed = EnvironmentId.parse(environment)
        provider = InProcessProvider(_manifest(parsed.library))
        provider.registration(parsed.name)
    except UnknownEnvironmentError as error:
        known = [record.id for record in list_environments()]
        nearest = _nearest(environment, known)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else "`ldm env list` shows them all"
        raise UnknownEnvironmentError(f"{error}; {hint}") from None
    return provider, parsed.name


def _nearest(text: str, known: list[str]) -> list[str]:
    """The known ids most like a text, which may lack its library and namespace."""
    aliases: dict[str, list[str]] = {}
    for identifier in known:
        parts = identifier.lower().split("/")
        for first in range(len(parts)):
            aliases.setdefault("/".join(parts[first:]), []).append(identifier)
    wanted = text.lower()
    matches = difflib.get_close_matches(wanted, aliases, n=_MAX_SUGGESTIONS)
    if "/" in wanted:  # A wrong library or namespace must not hide a name that is right.
        matches += difflib.get_close_matches(wanted.rpartition("/")[2], aliases, n=1, cutoff=0.9)
    found = [identifier for match in matches for identifier in aliases[match]]
    return list(dict.fromkeys(found))[:_MAX_SUGGESTIONS]


def _library_record(manifest: Manifest) -> LibraryRecord:
    try:
        num_environments, problem = len(InProcessProvider(manifest).records(all_versions=False)), None
    except EnvironmentFailure as error:
        num_environments, problem = 0, str(error)
    return LibraryRecord(
        manifest.slug,
        num_environments,
        problem,
        manifest.requirements,
        manifest.python,
        manifest.licence,
        manifest.homepage,
    )
