"""What an installation says of its packages: the lock, and the library's version, modules, licence and homepage.

The packages wrote it themselves, so it is held against its form, and files of this machine are those that the user named.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_hf.env_registry.library.manifest import Manifest
from ldm_hf.errors import ConfigError, EnvironmentFailure

_LICENCES = {"MIT License": "MIT", "Apache Software License": "Apache-2.0", "BSD License": "BSD-3-Clause"}
_PINNED = re.compile(r"[\w.-]+==[\w.!+-]+")
_FROM_ADDRESS = re.compile(r"[\w.-]+ @ (git\+)?https://[^\s'\"]+")
_COMMIT = re.compile(r"git\+(ssh|file)://[^\s'\"]+@[0-9a-f]{40}")
_NO_LIBRARIES = ("tests", "test", "docs", "examples", "scripts", "benchmarks")


@dataclass(frozen=True)
class Distribution:
    """What the metadata of an installed package say of it."""

    name: str
    version: str
    modules: tuple[str, ...]
    licence: str
    homepage: str


def lock_of(manifest: Manifest, frozen: list[str], source_of: Callable[[str], str | None]) -> tuple[str, ...]:
    """The packages of an installation in the form that ``lock`` takes, without those that only install others.

    Args:
        manifest: of the library.
        frozen: lines of ``pip freeze``.
        source_of: the path on this machine of an address ``file://...``, if the user named it.

    Raises:
        EnvironmentFailure: a line names no version, or a file that the user did not name.
    """
    lock = []
    for line in frozen:
        if not line.strip() or line.startswith(("#", "-e")) or re.match(r"(pip|wheel)\b", line):
            continue
        name, _, origin = line.partition(" @ ")
        source = source_of(origin) if origin.startswith("file://") else None
        if source is not None and re.fullmatch(r"[\w.-]+", name):
            lock.append(f"{name} @ file://{source}")
        elif _PINNED.fullmatch(line) or _FROM_ADDRESS.fullmatch(line) or _is_named(origin, manifest):
            lock.append(line.removesuffix("+cpu"))  # a build that another index may not have
        else:
            raise EnvironmentFailure(f"{manifest.slug} installed what cannot be locked: {line[:200]!r}")
    return tuple(lock)


def find_distribution(manifest: Manifest, lock: tuple[str, ...], distributions: list[dict[str, Any]]) -> Distribution:
    """What the metadata of a manifest's first requirement say, among those of all packages of its installation.

    Raises:
        ConfigError: there is no such package.
        EnvironmentFailure: the installation describes its packages in another form than ``worker/installed.py``.
    """
    name = _pin_name(manifest, lock)
    try:
        for one in distributions:
            if normal_name(one["name"]) == name:
                return _describe(name, one)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EnvironmentFailure(f"{manifest.slug}: the descriptions of its packages cannot be read: {error}") from None
    raise ConfigError(f"the requirement {manifest.requirements[0]!r} installed no package {name!r}")


def _describe(name: str, one: dict[str, Any]) -> Distribution:
    headers: dict[str, list[str]] = {}
    for key, value in one["headers"]:
        headers.setdefault(key.lower(), []).append(_printable(value))
    links = [link.partition(",")[2].strip() for link in headers.get("project-url", [])]
    homepage = next(iter([*headers.get("home-page", []), *links]), "")
    modules = tuple(module for module in one["modules"] if module.isidentifier() and module not in _NO_LIBRARIES)
    return Distribution(name, _printable(one["version"]).strip(), modules, _licence(headers), homepage)


def _licence(headers: dict[str, list[str]]) -> str:
    expression = next(iter(headers.get("license-expression", [])), "").strip()
    classifiers = [line.rpartition("::")[2].strip() for line in headers.get("classifier", []) if "License ::" in line]
    named = next((_LICENCES.get(one, one) for one in classifiers), "")
    text = next(iter(headers.get("license", [])), "").strip()
    written = text[:60] if text and text.upper() != "UNKNOWN" else ""
    return expression or named or written or "unknown"


def _printable(text: str) -> str:
    """The first line of a text that others wrote, without control characters."""
    lines = text.strip().splitlines()
    return "".join(letter for letter in lines[0] if letter.isprintable())[:500] if lines else ""


def _pin_name(manifest: Manifest, lock: tuple[str, ...]) -> str:
    """The normalised name of the package that a manifest's first requirement installs."""
    first = manifest.requirements[0]
    source = first.partition(" @ ")[2] or first
    if "://" in source or Path(source).exists():
        for line in lock:
            name, _, origin = line.partition(" @ ")
            if origin and _same_source(origin, source):
                return normal_name(name)
    match = re.match(r"[\w.-]+", first)
    return normal_name(match[0]) if match else first


def _is_named(origin: str, manifest: Manifest) -> bool:
    """Whether an address is a commit of a repository, here or by ssh, that a requirement names."""
    if not _COMMIT.fullmatch(origin):
        return False
    sources = [one.partition(" @ ")[2] or one for one in manifest.requirements]
    return any(_same_source(origin, source) for source in sources if source.startswith(("git+ssh://", "git+file://")))


def _same_source(origin: str, wanted: str) -> bool:
    """Whether what pip says of a package's origin is what a requirement names; commits and branches are not compared."""
    if "://" not in wanted:
        return origin.removeprefix("file://").startswith(str(Path(wanted).resolve()))
    return _repository(origin) == _repository(wanted)


def _repository(address: str) -> str:
    """An address without what chooses a version of it."""
    scheme, _, rest = address.removeprefix("git+").partition("#")[0].partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}/{path.partition('@')[0].rstrip('/').removesuffix('.git')}"


def normal_name(name: str) -> str:
    """A package's name as indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()
