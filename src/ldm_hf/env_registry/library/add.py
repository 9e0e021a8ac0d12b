"""Adding a library: install it, find what it registers, validate each environment, write its manifest and report."""

import contextlib
import fnmatch
import json
import logging
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm_hf.env_registry.library.distribution import find_distribution, lock_of, normal_name
from ldm_hf.env_registry.library.manifest import Manifest, load_manifests, tomllib
from ldm_hf.env_registry.library.own_code import name_of, own_code
from ldm_hf.env_registry.library.repair import (
    MOST_REPAIRS,
    Diagnosis,
    diagnose_failure,
    diagnose_failures,
    diagnose_none,
)
from ldm_hf.env_registry.library.report import EnvironmentReport, Report, load_report
from ldm_hf.env_registry.library.validation import validate
from ldm_hf.env_registry.providers.base import IsolatedProvider, Limits
from ldm_hf.env_registry.providers.selection import ISOLATED, isolated
from ldm_hf.env_registry.remote.worker_process import discover, installed
from ldm_hf.errors import ConfigError, EnvironmentFailure
from ldm_hf.utils.files import remove, replacing
from ldm_hf.utils.progress import progress_bar

_log = logging.getLogger(__name__)

PYTHONS = ("3.11", "3.10", "3.12", "3.9", "3.8", "3.13", "3.7")
"""Versions of Python that are tried, in this order, where none is asked for."""

OLD_TOOLS = ("pip<24.1", "setuptools<66", "wheel<0.39")
"""Tools that still take what packages of old Gym's time say of themselves."""

MENDED_SHARE = 0.1
"""Share of a library's environments that must fail for a repair: all of them are validated once more after it."""

SAMPLED_FROM, SAMPLE = 200, 24
"""Libraries of at least 200 environments have 24 of them, at most, validated and mended first."""

_HOSTS = ("github.com", "gitlab.com", "bitbucket.org", "codeberg.org", "huggingface.co")
_ARCHIVES = (".zip", ".tar.gz", ".whl")

_OLD_METADATA = ("invalid metadata", "could not be parsed", "Failed to build", "build_wheel")

_COMPARED = ("observation_space", "action_space", "max_episode_steps", "deterministic", "step_values", "problems")


@dataclass(frozen=True)
class AddRequest:
    """What ``ldm env add`` was asked for.

    Attributes:
        keys: keys of the manifest, as TOML would hold them.
        python: version of Python; None tries ``PYTHONS``.
        file: TOML file with more keys of the manifest.
        manifest: slug of a library that is validated again, as it is locked.
        provider: "venv" or "docker".
        jobs: environments that are validated at a time.
        timeout: seconds that the validation of one may take.
        memory: bytes that the validation of one may take.
        only: glob of the ids to validate.
        output: folder that manifest and report are written to.
    """

    keys: dict[str, Any]
    python: str | None
    file: Path | None
    manifest: str | None
    provider: str
    jobs: int
    timeout: float
    memory: int
    only: str
    output: Path


def add_library(request: AddRequest) -> Iterator[str]:
    """Install a library, validate its environments, write its manifest and report; yields lines that say what came out.

    Where it cannot be imported, or at least a tenth of its environments fail, and the failure says what mends it, that is
    done and it is tried again, three times at most. A repair after which fewer are validated is taken back.

    Of large registries that is done with a sample, which is written and can be used while the others are validated.

    Raises:
        ConfigError: the request names no library, or a key that no manifest has.
        EnvironmentFailure: the library cannot be installed or imported, or none of its environments could be validated; the
            message says what to do next.
    """
    draft = _draft(request)
    pythons = (request.python,) if request.python else (draft.python,) if draft.python else PYTHONS
    work_file = request.output / f"{draft.slug}.validation.jsonl"
    best: _Attempt | None = None
    for repairs in range(MOST_REPAIRS + 1):
        validated = best.validated if best else 0
        try:
            attempt = yield from _attempt(request, draft, pythons, work_file)
        except EnvironmentFailure as failure:
            diagnosis = diagnose_failure(str(failure), draft)
            if validated:
                yield f"{draft.slug}: that did not help, and is taken back: {failure}"
                break
            if diagnosis is None or diagnosis.repaired is None or repairs == MOST_REPAIRS:
                advice = "" if diagnosis is None else f"; {diagnosis.cause}: {diagnosis.advice}"
                raise EnvironmentFailure(f"{failure}{advice}") from failure
        else:
            if attempt.validated < validated:
                yield f"{draft.slug}: that did not help, and is taken back"
                break
            best = attempt
            diagnosis = _mendable(attempt, draft)
        if diagnosis is None or diagnosis.repaired is None or repairs == MOST_REPAIRS:
            break
        draft = diagnosis.repaired
        yield f"{draft.slug}: {diagnosis.cause}; trying again: {diagnosis.advice}"
    assert best is not None
    paths = write_library(request.output, best.provider, best.found, best.reports)
    left = len(best.wanted) - len(best.reports)
    if left > 0 and best.validated:
        yield (
            f"{draft.slug}: of a sample {best.validated} environments validated, {len(best.failures)} failed. They can be "
            f"used already; {left} others follow. Interrupted, the same command resumes"
        )
        best = replace(best, reports=_validate(request, best.provider, best.wanted, work_file))
        paths = write_library(request.output, best.provider, best.found, best.reports)
    remove(work_file)
    yield f"{draft.slug}: {best.validated} environments validated, {len(best.failures)} failed"
    yield from (f"  {report.name}: {report.failure}" for report in best.reports if report.failure)
    yield f"written: {', '.join(map(str, paths))}"
    if not best.validated:
        tried = f" (a sample of {len(best.reports)} was tried)" if left > 0 else ""
        raise EnvironmentFailure(
            f"no environment of {draft.slug} could be validated{tried}: {_next_step(best.reports, draft)}"
        )


@dataclass(frozen=True)
class _Attempt:
    """An installation of a library, what it registers, what of that is wanted, and what validation said of some."""

    provider: IsolatedProvider
    found: dict[str, Any]
    wanted: list[EnvironmentReport]
    reports: list[EnvironmentReport]

    @property
    def failures(self) -> list[str]:
        return [report.failure for report in self.reports if report.failure]

    @property
    def validated(self) -> int:
        return len(self.reports) - len(self.failures)


def _attempt(
    request: AddRequest, draft: Manifest, pythons: Sequence[str], work_file: Path
) -> Generator[str, None, _Attempt]:
    provider, found = install(draft, pythons, ISOLATED[isolated(draft, request.provider).name])
    environments = environments_of(provider.manifest, found)
    yield f"{provider.manifest.slug}: Python {provider.manifest.python}, {len(environments)} environments found"
    wanted = [report for report in environments if fnmatch.fnmatchcase(report.name, request.only)]
    # Evenly by name, as families of environments are named alike.
    chosen = wanted if len(wanted) < SAMPLED_FROM else wanted[:: -(-len(wanted) // SAMPLE)]
    return _Attempt(provider, found, wanted, _validate(request, provider, chosen, work_file))


def _validate(
    request: AddRequest, provider: IsolatedProvider, chosen: list[EnvironmentReport], work_file: Path
) -> list[EnvironmentReport]:
    limits = Limits(memory=request.memory)
    return validate_all(
        provider, chosen, work_file=work_file, jobs=request.jobs, timeout=request.timeout, limits=limits
    )


def _mendable(attempt: _Attempt, draft: Manifest) -> Diagnosis | None:
    """What most failures come from, where it can be mended and enough environments fail to validate all once more."""
    if not attempt.reports:
        return diagnose_none(attempt.found.get("registers", []), draft)
    if len(attempt.failures) < MENDED_SHARE * len(attempt.reports):
        return None
    return diagnose_failures(attempt.failures, draft)


def _next_step(reports: Sequence[EnvironmentReport], draft: Manifest) -> str:
    if not reports:
        return "it registers none; name its modules by --module, or its classes by --entry-point NAME=module:Class"
    diagnosis = diagnose_failures([str(report.failure) for report in reports], draft)
    if diagnosis is None:
        return f"{reports[0].name}: {reports[0].failure}"
    return f"{diagnosis.cause}; {diagnosis.advice}"


def _draft(request: AddRequest) -> Manifest:
    if request.manifest is not None:
        return (
            replace(load_manifests()[request.manifest]) if request.manifest in load_manifests() else _unknown(request)
        )
    data: dict[str, Any] = {"python": "", "modules": [], "packages": [], "licence": "", "homepage": ""}
    if request.file is not None:
        try:
            data.update(tomllib.loads(request.file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{request.file} cannot be read: {error}") from error
    data.update(request.keys)
    if not data.get("requirements"):
        raise ConfigError("name what to install: a requirement, a repository, a folder, or FILE.py:Class")
    first, *more = data["requirements"]
    if (own := own_code(first, request.output)) is not None:
        data = {**own, **data, "requirements": [*own["requirements"], *more], "python": data["python"] or own["python"]}
        data["entry_points"] = [*own["entry_points"], *request.keys.get("entry_points", [])]
        data["modules"] = data["modules"] or own.get("modules", [])
    data["requirements"] = [requirement_of(requirement) for requirement in data["requirements"]]
    data.setdefault("slug", _slug(data["requirements"][0]))
    return Manifest.from_data(data, "the request")


def _unknown(request: AddRequest) -> Manifest:
    raise ConfigError(f"no library is called {request.manifest!r}; `ldm env list` shows them all")


def requirement_of(text: str) -> str:
    """What pip takes for what a user types: a folder by its full path, as installers run elsewhere; a repository as git's.

    A repository may be named as git names it, ``git@host:owner/name.git`` or ``https://.../name.git``, with ``@branch``,
    ``@tag`` or ``@commit`` behind it, or by the address of its page on a well-known host.
    """
    if Path(text).is_dir():
        return str(Path(text).resolve())
    if match := re.fullmatch(r"([\w.-]+@[\w.-]+):(?!/)(.+)", text):
        return f"git+ssh://{match[1]}/{match[2]}"
    scheme, separator, rest = text.partition("://")
    if not separator or "+" in scheme or " " in scheme:
        return text
    host, _, path = rest.partition("/")
    path = path.partition("@")[0]
    if scheme in ("ssh", "git") or path.endswith(".git") or (host in _HOSTS and not path.endswith(_ARCHIVES)):
        return f"git+{text}"
    return text


def slug_of(target: str) -> str:
    """The slug that a library gets, which ``target`` is the first requirement of, or one's own code."""
    library = name_of(target)
    return _slug(requirement_of(target)) if library is None else normal_name(library)


def _slug(requirement: str) -> str:
    if "://" in requirement:
        path = requirement.partition("#")[0].partition("://")[2].partition("/")[2]
        name = path.partition("@")[0].rstrip("/").removesuffix(".git").rpartition("/")[2]
    elif Path(requirement).is_dir():
        name = Path(requirement).name
    else:
        name = re.match(r"[\w.-]*", requirement)[0]  # type: ignore[index]
    return normal_name(name)


def check_library(target: str, provider_name: str, *, jobs: int, timeout: float) -> list[str]:
    """Validate a library, or one environment, again; returns a line for each difference from the report."""
    slug, _, name = target.partition("/")
    if slug not in load_manifests():
        raise ConfigError(f"no library is called {slug!r}; `ldm env list` shows them all")
    report = load_report(slug)
    provider = isolated(load_manifests()[slug], provider_name)
    provider.build()
    wanted = [one for one in report.validated if not name or one.name == name]
    if not wanted:
        raise ConfigError(f"{target} is not among the validated environments of {slug}")
    differences = []
    with ThreadPoolExecutor(jobs) as pool:
        again = pool.map(lambda one: validate(provider, one, timeout=timeout), wanted)
        for before, now in zip(wanted, again, strict=True):
            different = [key for key in _COMPARED if getattr(before, key) != getattr(now, key)]
            reason = now.failure or ", ".join(f"{key} is {getattr(now, key)}" for key in different)
            if reason:
                differences.append(f"{slug}/{before.name}: {reason}")
    return differences


def install(
    draft: Manifest, pythons: Iterable[str], provider_class: Callable[[Manifest], IsolatedProvider]
) -> tuple[IsolatedProvider, dict[str, Any]]:
    """Install a library with the first Python that takes it, import it and list what is registered.

    What the draft leaves empty is filled in: modules, packages, licence, homepage, and the lock of all versions.

    Returns:
        The installation, whose manifest is complete, and what ``worker_process.discover`` found in it.

    Raises:
        EnvironmentFailure: no Python could install and import it; the message has the reason of each.
    """
    failures = []
    for python in pythons:
        attempt = replace(draft, python=python)
        # uv takes no old metadata (gym 0.21's, for one) and no Python 3.7: then it is pip, with the tools of that time.
        old = replace(attempt, installer="pip", build_requirements=draft.build_requirements or OLD_TOOLS)
        for manifest in (attempt, old) if python != "3.7" and attempt != old else (old,):
            try:
                return _install(manifest, provider_class)
            except EnvironmentFailure as failure:
                reason = str(failure)
                if (diagnosis := diagnose_failure(reason, draft)) is not None and diagnosis.repaired is not None:
                    raise  # mended sooner than by another Python
                failures.append(f"Python {python} with {manifest.installer}: {reason}")
                _log.info("Python %s with %s does not do: %s", python, manifest.installer, reason[-300:])
            if not any(sign in reason for sign in _OLD_METADATA):
                break
    raise EnvironmentFailure(f"{draft.slug} cannot be installed. " + " | ".join(failures))


def _install(
    draft: Manifest, provider_class: Callable[[Manifest], IsolatedProvider]
) -> tuple[IsolatedProvider, dict[str, Any]]:
    if not draft.lock:
        resolving = provider_class(draft)
        resolving.build()
        frozen, distributions = installed(resolving)
        lock = lock_of(draft, frozen, resolving.source_of)
        distribution = find_distribution(draft, lock, distributions)
        modules = draft.modules or distribution.modules
        draft = replace(
            draft,
            lock=lock,
            modules=modules,
            packages=draft.packages or tuple(dict.fromkeys(module.partition(".")[0] for module in modules)),
            licence=draft.licence or distribution.licence,
            homepage=draft.homepage or distribution.homepage,
        )
        # The installation that is validated is the one that the manifest describes: made again, from the lock only.
        resolving.remove()
    provider = provider_class(draft)
    provider.build()
    version = find_distribution(draft, draft.lock, installed(provider)[1]).version
    return provider, {**discover(provider), "version": version}


def environments_of(manifest: Manifest, found: dict[str, Any]) -> list[EnvironmentReport]:
    """The environments of a library among everything that is registered, and those of its manifest, sorted by name."""
    reports = {
        one["id"]: EnvironmentReport(
            one["id"],
            one["entry_point"],
            one["registry"],
            reward_threshold=one["reward_threshold"],
            nondeterministic=one["nondeterministic"],
        )
        for one in found["environments"]
        if one["entry_point"].partition(":")[0].partition(".")[0] in manifest.packages
        and not one["entry_point"].startswith(manifest.broken_entry_points)
    }
    for entry_point in manifest.entry_points:
        reports[entry_point.name] = EnvironmentReport(entry_point.name, entry_point.entry_point)
    return [reports[name] for name in sorted(reports)]


def validate_all(
    provider: IsolatedProvider,
    found: list[EnvironmentReport],
    *,
    work_file: Path,
    jobs: int,
    timeout: float,
    limits: Limits = Limits(),
) -> list[EnvironmentReport]:
    """Validate environments, several at a time, each in a process of its own.

    Each finished report is appended to ``work_file`` at once, and what stands there already of the same manifest is not
    done again: an interrupted validation continues where it was.
    """
    work_file.parent.mkdir(parents=True, exist_ok=True)
    key = provider.manifest.validation_key
    done = _read_work(work_file, key)
    missing = [report for report in found if report.name not in done]
    pool = ThreadPoolExecutor(jobs)
    with work_file.open("a", encoding="utf-8") as log, contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        bar = stack.enter_context(progress_bar(provider.manifest.slug, total=len(found), unit="environment"))
        bar.update(len(found) - len(missing))
        if work_file.stat().st_size:
            log.write("\n")  # The last line may be half written: what comes must not be glued to it.
        futures = [pool.submit(validate, provider, report, timeout=timeout, limits=limits) for report in missing]
        for future in as_completed(futures):
            report = future.result()
            done[report.name] = report
            log.write(json.dumps({"manifest": key, **report.to_json()}) + "\n")
            log.flush()
            bar.update(1)
    return [done[report.name] for report in found]


def write_library(
    folder: Path, provider: IsolatedProvider, found: dict[str, Any], reports: list[EnvironmentReport]
) -> tuple[Path, Path]:
    """Write manifest and report into a folder; returns their paths."""
    manifest = provider.manifest
    environments = {report.name: report for report in reports}
    report = Report(manifest.slug, found["version"], found["python"], provider.name, environments)
    folder.mkdir(parents=True, exist_ok=True)
    report.write(folder / f"{manifest.slug}.json")
    with replacing(folder / f"{manifest.slug}.toml") as temporary:
        temporary.write_text(manifest.to_toml(), encoding="utf-8")
    return folder / f"{manifest.slug}.toml", folder / f"{manifest.slug}.json"


def _read_work(path: Path, key: str) -> dict[str, EnvironmentReport]:
    done = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):  # The last line may be half written.
            data = json.loads(line)
            if data.pop("manifest", None) == key:
                report = EnvironmentReport.from_json(data)
                done[report.name] = report
    return done
