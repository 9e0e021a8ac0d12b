"""Find and make environments by id: ``list_environments``, ``spec``, ``make`` and ``make_vec``."""

import difflib
import fnmatch
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode

from ldm_hf.env_registry.experts import Expert
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.library.manifest import Manifest, load_manifests
from ldm_hf.env_registry.library.repair import lacks_arguments
from ldm_hf.env_registry.library.report import EnvironmentReport, load_report
from ldm_hf.env_registry.providers.base import Limits
from ldm_hf.env_registry.providers.inprocess import InProcessProvider, Vectorization
from ldm_hf.env_registry.providers.selection import choose
from ldm_hf.env_registry.remote.vector_env import RemoteEnv, RemoteVectorEnv
from ldm_hf.env_registry.remote.worker_batch import STEP_TIMEOUT, RemoteSettings
from ldm_hf.env_registry.spec import EnvironmentSpec, LibraryRecord
from ldm_hf.errors import ConfigError, UnknownEnvironmentError

_MAX_SUGGESTIONS = 3


def list_libraries() -> list[LibraryRecord]:
    """The libraries that have a manifest, in alphabetical order."""
    return [_library_record(manifest) for manifest in load_manifests().values()]


def list_environments(library: str | None = None, *, all_versions: bool = False) -> list[EnvironmentSpec]:
    """The validated environments, sorted by id. Nothing is imported, installed or made for this.

    Args:
        library: slug of the library; by default all.
        all_versions: also list older versions and what else a newer environment replaces.

    Raises:
        UnknownEnvironmentError: no library has this slug.
    """
    manifests = list(load_manifests().values()) if library is None else [find_manifest(library)]
    return [
        _spec(manifest, report)
        for manifest in manifests
        for report in _validated(manifest)
        if all_versions or report.name in _newest(manifest)
    ]


def ready_environments() -> list[EnvironmentSpec]:
    """The environments of ``list_environments`` that ``make`` gives without installing anything."""
    ready: dict[tuple[str, str], bool] = {}
    found = []
    for manifest in load_manifests().values():
        for report in _validated(manifest):
            key = manifest.slug, report.entry_point
            if key not in ready:
                ready[key] = _is_ready(manifest, report.entry_point)
            if ready[key] and report.name in _newest(manifest):
                found.append(_spec(manifest, report))
    return found


def _is_ready(manifest: Manifest, entry_point: str) -> bool:
    provider = choose(manifest, entry_point, None)
    if isinstance(provider, InProcessProvider):
        return manifest.install_command(entry_point) is None
    return provider.is_built()


def spec(environment: str) -> EnvironmentSpec:
    """Describe an environment, as it was validated.

    Raises:
        UnknownEnvironmentError: no environment has this id; the message suggests the nearest.
    """
    return _spec(*_find(environment))


def make(
    environment: str,
    *,
    provider: str | None = None,
    render_mode: str | None = None,
    max_episode_steps: int | None = None,
    limits: Limits = Limits(),
    step_timeout: float = STEP_TIMEOUT,
    restart: bool = False,
    **kwargs: Any,
) -> gymnasium.Env:
    """Make an environment that always has a time limit. An installation that is missing is made first.

    Args:
        environment: ``<library slug>/<Gymnasium id>``.
        provider: where it runs: ``"inprocess"``, ``"venv"`` or ``"docker"``; by default what ``LDM_PROVIDER`` says, or what
            ``ldm_hf.env_registry.providers.selection.choose`` finds.
        render_mode: as in ``gymnasium.make``.
        max_episode_steps: steps after which an episode is truncated. By default what the library registers or, where
            it registers nothing, the library's default (1000 unless its manifest says otherwise); see ``spec``.
        limits: memory and processors of an isolated environment.
        step_timeout: seconds after which a step or reset of an isolated environment is given up.
        restart: whether an isolated environment that fails is replaced by a fresh one, its episode ending as truncated with
            the reason in ``info["worker_failure"]``.
        **kwargs: for the environment's constructor; an isolated one takes plain data only.

    Raises:
        UnknownEnvironmentError: no environment has this id; the message suggests the nearest.
        EnvironmentFailure: it cannot be made here; the message says why and what helps.
        ConfigError: an argument is out of range.
    """
    manifest, report = _find(environment, kwargs)
    chosen = choose(manifest, report.entry_point, provider)
    _check_limit(max_episode_steps)
    if isinstance(chosen, InProcessProvider):
        return chosen.make(
            report.name,
            entry_point=report.entry_point,
            max_episode_steps=max_episode_steps,
            default_limit=report.time_limit_is_default,
            **_constructor_arguments(render_mode, kwargs),
        )
    chosen.build()
    return RemoteEnv(
        RemoteSettings(
            chosen, report.name, render_mode, max_episode_steps, kwargs, limits, step_timeout, restart=restart
        )
    )


def make_vec(
    environment: str,
    num_envs: int,
    *,
    provider: str | None = None,
    num_workers: int = 1,
    vectorization: Vectorization = "sync",
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    render_mode: str | None = None,
    max_episode_steps: int | None = None,
    limits: Limits = Limits(),
    step_timeout: float = STEP_TIMEOUT,
    restart: bool = False,
    expert: Expert | None = None,
    **kwargs: Any,
) -> gymnasium.vector.VectorEnv:
    """Make several copies of an environment behind one Gymnasium vector environment, each with a time limit.

    Args:
        environment: ``<library slug>/<Gymnasium id>``.
        num_envs: how many copies.
        provider: as in ``make``.
        num_workers: processes that an isolated environment's copies are divided over.
        vectorization: in this process, ``"sync"`` steps them one after another, ``"async"`` each in its own process.
        autoreset_mode: when a finished copy is reset. The default ``NextStep`` is Gymnasium's own, which its wrappers
            require: the step after the last one of an episode is the reset, and its action is ignored. ``SameStep``, which
            Stable-Baselines3 requires, returns the first observation of the next episode from the step that ends one, and
            the last one as ``info["final_obs"]``: every step is a transition.
        render_mode: as in ``gymnasium.make``.
        max_episode_steps, limits, step_timeout: as in ``make``.
        restart: whether a worker that fails is replaced, the episodes of its environments ending as truncated.
        expert: a function that chooses actions beside the environments, see ``RemoteVectorEnv.expert_actions``. They are in
            isolation then, also where the library could be imported here.
        **kwargs: for the environment's constructor.

    Raises:
        UnknownEnvironmentError, EnvironmentFailure: as ``make``.
        ConfigError: an argument is out of range, or a mode does not exist.
    """
    try:
        mode = AutoresetMode(autoreset_mode)
    except ValueError as error:
        modes = ", ".join(repr(known.value) for known in AutoresetMode)
        raise ConfigError(f"autoreset_mode must be one of {modes}, got {autoreset_mode!r}") from error
    manifest, report = _find(environment, kwargs)
    chosen = choose(manifest, report.entry_point, provider, isolated_only=expert is not None)
    _check_limit(max_episode_steps)
    if isinstance(chosen, InProcessProvider):
        return chosen.make_vec(
            report.name,
            num_envs,
            vectorization=vectorization,
            autoreset_mode=mode,
            entry_point=report.entry_point,
            max_episode_steps=max_episode_steps,
            default_limit=report.time_limit_is_default,
            **_constructor_arguments(render_mode, kwargs),
        )
    chosen.build()
    settings = RemoteSettings(
        chosen,
        report.name,
        render_mode,
        max_episode_steps,
        kwargs,
        limits,
        step_timeout,
        restart=restart,
        expert=expert,
    )
    return RemoteVectorEnv(settings, num_envs, num_workers=num_workers, autoreset_mode=mode)


def is_isolated(environment: str, provider: str | None = None) -> bool:
    """Whether ``make`` runs an environment in a process of its own.

    Raises:
        UnknownEnvironmentError, EnvironmentFailure: as ``make``.
    """
    manifest, report = _find(environment)
    return not isinstance(choose(manifest, report.entry_point, provider), InProcessProvider)


def library_version(environment: str, provider: str | None = None, *, isolated: bool = False) -> str:
    """Version of the library that ``make`` runs an environment of."""
    manifest, report = _find(environment)
    chosen = choose(manifest, report.entry_point, provider, isolated_only=isolated)
    return chosen.version() if isinstance(chosen, InProcessProvider) else load_report(manifest.slug).version


def provenance(environment: str, provider: str | None = None, *, isolated: bool = False) -> dict[str, str]:
    """What ``make`` runs an environment in, for the record: provider, Python, image digest or hash of the lock.

    An installation that is missing is made first, as ``make`` does.
    """
    manifest, report = _find(environment)
    chosen = choose(manifest, report.entry_point, provider, isolated_only=isolated)
    if isinstance(chosen, InProcessProvider):
        return {"provider": "inprocess", "python": platform.python_version()}
    chosen.build()
    return chosen.provenance()


def _check_limit(max_episode_steps: int | None) -> None:
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ConfigError(f"max_episode_steps must be at least 1, got {max_episode_steps}")


def _constructor_arguments(render_mode: str | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    # An environment that never renders may take no such argument at all.
    return kwargs if render_mode is None else {"render_mode": render_mode, **kwargs}


def find_manifest(library: str) -> Manifest:
    """The manifest of a library; ``UnknownEnvironmentError`` if there is none of that slug."""
    manifests = load_manifests()
    if library not in manifests:
        near = difflib.get_close_matches(library, manifests, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(manifests)}"
        raise UnknownEnvironmentError(f"no library is called {library!r}; {hint}")
    return manifests[library]


def _validated(manifest: Manifest) -> list[EnvironmentReport]:
    try:
        return load_report(manifest.slug).validated
    except UnknownEnvironmentError:  # A manifest without a report: its library was never added.
        return []


def _newest(manifest: Manifest) -> set[str]:
    """The environments of a library that none of a higher version, and no rule of the manifest, replaces."""
    newest: dict[str, tuple[int, str]] = {}
    for report in _validated(manifest):
        base, dash, version = report.name.rpartition("-v")
        key, number = (base, int(version)) if dash and version.isdecimal() else (report.name, 0)
        newest[key] = max(newest.get(key, (-1, "")), (number, report.name))
    names = {name for _, name in newest.values()}
    return {name for name in names if not any(fnmatch.fnmatchcase(name, rule) for rule in manifest.superseded)}


def _spec(manifest: Manifest, report: EnvironmentReport) -> EnvironmentSpec:
    return EnvironmentSpec(
        id=f"{manifest.slug}/{report.name}",
        observation_space=report.observation_space,
        action_space=report.action_space,
        max_episode_steps=report.max_episode_steps,
        time_limit_is_default=report.time_limit_is_default,
        kwargs=report.kwargs,
        reward_threshold=report.reward_threshold,
        nondeterministic=report.nondeterministic,
        deterministic=report.deterministic,
        problems=report.problems,
        steps_per_second=report.steps_per_second,
        render_modes=report.render_modes,
        library_version=load_report(manifest.slug).version,
        requirements=manifest.requirements_of(report.entry_point),
        licence=manifest.licence,
        homepage=manifest.homepage,
    )


def _find(environment: str, arguments: Mapping[str, Any] | None = None) -> tuple[Manifest, EnvironmentReport]:
    """A validated environment; with ``arguments`` for its constructor also one that failed for the lack of some."""
    try:
        parsed = EnvironmentId.parse(environment)
        manifest = find_manifest(parsed.library)
        for report in _validated(manifest):
            if report.name == parsed.name:
                return manifest, report
        failed = load_report(manifest.slug).environments.get(parsed.name)
        if arguments and failed is not None and lacks_arguments(str(failed.failure)):
            return manifest, failed
        raise UnknownEnvironmentError(_why_not(manifest, parsed.name))
    except UnknownEnvironmentError as error:
        nearest = _nearest(environment, (found.id for found in list_environments()))
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else "`ldm env list` shows them all"
        raise UnknownEnvironmentError(f"{error}; {hint}") from None


def _why_not(manifest: Manifest, name: str) -> str:
    failed = load_report(manifest.slug).environments.get(name)
    reason = f": {failed.failure}" if failed else ""
    if failed and lacks_arguments(str(failed.failure)):
        reason += "; give them to make"
    return f"{manifest.slug} has no environment {name!r}" + (f" that could be validated{reason}" if reason else "")


def _nearest(text: str, known: Iterable[str]) -> list[str]:
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
    return LibraryRecord(
        manifest.slug,
        len(list_environments(manifest.slug)),
        manifest.install_command() is None,
        manifest.requirements,
        manifest.python,
        manifest.licence,
        manifest.homepage,
    )
