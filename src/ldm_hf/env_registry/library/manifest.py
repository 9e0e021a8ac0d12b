"""Manifests: one TOML file per library in ``manifests/``, data only. docs/environments.md describes the keys."""

import fnmatch
import functools
import hashlib
import importlib.util
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from annotated_types import Ge

from ldm_hf.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_MAX_EPISODE_STEPS = 1000
_STRICT = {"extra": "forbid"}  # of pydantic: keys that a class does not have are refused


@dataclass(frozen=True)
class Extra:
    """Packages that a part of a library needs and its plain installation lacks.

    Attributes:
        entry_points: the part: environments whose entry point begins with this.
        imports: modules that must be importable.
        requirements: what pip installs to get them.
    """

    __pydantic_config__ = _STRICT

    entry_points: str
    imports: tuple[str, ...]
    requirements: tuple[str, ...]


@dataclass(frozen=True)
class EntryPoint:
    """An environment that its library does not register.

    Attributes:
        name: its id without the library.
        entry_point: what makes it, as ``module:name``.
        args, kwargs: what that is called with. A value ``{call = "module:name", args = [...], kwargs = {...}}`` anywhere in
            them is called first, inside the worker, so that wrappers and built arguments can be written as data.
    """

    __pydantic_config__ = _STRICT

    name: str
    entry_point: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arguments:
    """Constructor arguments that environments require.

    Attributes:
        pattern: glob over ids without the library.
        kwargs: the arguments; calls as in ``EntryPoint``.
    """

    __pydantic_config__ = _STRICT

    pattern: str
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class RewardWeights:
    """How a reward of several values becomes one.

    Attributes:
        pattern: glob over ids without the library.
        weights: the reward is the sum of its values times these; 1 each where nothing is said.
    """

    __pydantic_config__ = _STRICT

    pattern: str
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Texts:
    """How a text among the parts of an observation becomes symbols: a slot for each of its words.

    Words are runs of letters and digits, in any case, and single other characters. Symbol 0 is no word, since the text has
    ended, and 1 a word that is not listed; words beyond ``length`` are left out.

    Attributes:
        patterns: globs over ids without the library.
        path: keys that lead to the text in the observation.
        words: those that have symbols of their own, from 2 on.
        length: words that are read.
    """

    __pydantic_config__ = _STRICT

    patterns: tuple[str, ...]
    path: tuple[str, ...]
    words: tuple[str, ...]
    length: Annotated[int, Ge(1)]


@dataclass(frozen=True)
class Manifest:
    """One library.

    Attributes:
        slug: first part of the ids of its environments.
        requirements: what pip installs; the first is the library itself.
        python: version of Python of its isolated installation: ``"3.10"``.
        modules: imported so that the library registers its environments.
        packages: an environment belongs to the library if its entry point lies in one of these packages.
        licence: SPDX expression.
        homepage: address of its documentation.
        lock: every package of the isolated installation with its version.
        build_requirements: installed before the others, where a library's own installation needs old tools.
        installer: ``"uv"``, or ``"pip"`` for metadata or a Python that uv does not take.
        system_packages: packages of Debian that the library needs.
        register: functions ``module:name``, called after the imports.
        environment: environment variables of the worker.
        entry_points: environments that the library does not register.
        arguments: constructor arguments that environments require.
        reward_weights: how rewards of several values become one.
        texts: which texts of observations become symbols, and how.
        default_max_episode_steps: time limit of environments that register none.
        broken_entry_points: environments whose entry point begins with one of these only raise: they are left out.
        superseded: glob patterns of ids that are listed only with all versions.
        extras: parts that need more than the plain installation when it is made by hand.
    """

    __pydantic_config__ = _STRICT

    slug: str
    requirements: tuple[str, ...]
    python: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    licence: str
    homepage: str
    lock: tuple[str, ...] = ()
    build_requirements: tuple[str, ...] = ()
    installer: str = "uv"
    system_packages: tuple[str, ...] = ()
    register: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    entry_points: tuple[EntryPoint, ...] = ()
    arguments: tuple[Arguments, ...] = ()
    reward_weights: tuple[RewardWeights, ...] = ()
    texts: tuple[Texts, ...] = ()
    default_max_episode_steps: int = DEFAULT_MAX_EPISODE_STEPS
    broken_entry_points: tuple[str, ...] = ()
    superseded: tuple[str, ...] = ()
    extras: tuple[Extra, ...] = ()

    @classmethod
    def from_toml(cls, text: str, source: str) -> "Manifest":
        """Read a manifest; ``source`` names it in the message of the ``ConfigError`` that a malformed one raises."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{source} is not a library manifest: {error}") from error
        return cls.from_data(data, source)

    @classmethod
    def from_data(cls, data: dict[str, Any], source: str) -> "Manifest":
        """Read a manifest as TOML gives it; ``ConfigError`` names ``source`` and the key that is wrong."""
        where = f"{source} is not a library manifest"
        manifest = _checked(data, where)
        if not _SLUG.fullmatch(manifest.slug):
            raise ConfigError(f"{where}: slug should be like 'my-library', in lower case, got {manifest.slug!r}")
        if manifest.installer not in INSTALLERS:
            raise ConfigError(f"{where}: installer should be {' or '.join(INSTALLERS)}, got {manifest.installer!r}")
        return manifest

    def to_toml(self) -> str:
        """The manifest as a file's text; what has its default value is left out."""
        required = {part.name for part in fields(self) if part.default is MISSING and part.default_factory is MISSING}
        plain = asdict(Manifest("", (), "", (), (), "", ""))
        data = {key: value for key, value in asdict(self).items() if key in required or value != plain[key]}
        return tomli_w.dumps(data, multiline_strings=False)

    @property
    def build_key(self) -> str:
        """Twelve hexadecimal digits that change when an isolated installation must be made again."""
        parts = (
            [_content(requirement) for requirement in self.requirements],
            self.python,
            self.lock,
            self.build_requirements,
            self.installer,
            self.system_packages,
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    @property
    def validation_key(self) -> str:
        """Twelve hexadecimal digits that change when the installation does, or how environments are made in it."""
        return hashlib.sha256(f"{self.build_key}\n{self.to_toml()}".encode()).hexdigest()[:12]

    def recipe(self, name: str) -> dict[str, Any]:
        """What a worker needs to make an environment, as plain data; ``worker/compatibility.py`` reads it."""
        entry_point = next((found for found in self.entry_points if found.name == name), None)
        weights = next((rule.weights for rule in self.reward_weights if fnmatch.fnmatchcase(name, rule.pattern)), None)
        call = entry_point and {
            "call": entry_point.entry_point,
            "args": list(entry_point.args),
            "kwargs": entry_point.kwargs,
        }
        return {
            "name": name,
            "entry_point": call,
            "reward_weights": None if weights is None else list(weights),
            "texts": [
                {"path": list(rule.path), "words": list(rule.words), "length": rule.length}
                for rule in self.texts
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in rule.patterns)
            ],
            "default_max_episode_steps": self.default_max_episode_steps,
        }

    def arguments_of(self, name: str) -> dict[str, Any]:
        """Constructor arguments that an environment requires."""
        found: dict[str, Any] = {}
        for rule in self.arguments:
            if fnmatch.fnmatchcase(name, rule.pattern):
                found.update(rule.kwargs)
        return found

    def requirements_of(self, entry_point: str) -> tuple[str, ...]:
        """What pip installs to get an environment of this entry point."""
        return next((extra.requirements for extra in self._extras_of(entry_point)), self.requirements)

    def install_command(self, entry_point: str = "") -> str | None:
        """The pip command for what is not installed here of the library and of an entry point's extra, or None."""
        if not _importable(self.modules):
            return pip_install(self.requirements_of(entry_point))
        missing = [extra for extra in self._extras_of(entry_point) if not _importable(extra.imports)]
        return pip_install(missing[0].requirements) if missing else None

    def _extras_of(self, entry_point: str) -> list[Extra]:
        return [extra for extra in self.extras if entry_point.startswith(extra.entry_points)]


INSTALLERS = ("uv", "pip")
_SLUG = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")  # as in ids


def home() -> Path:
    """Where libraries that a user added, and isolated installations, are kept: ``$LDM_HOME`` or ``~/.cache/ldm_hf``."""
    return Path(os.environ.get("LDM_HOME") or Path.home() / ".cache" / "ldm_hf")


def library_folders() -> tuple[Path, Path]:
    """Where manifests lie: the package's own, then the user's, which win."""
    return Path(__file__).parent / "manifests", home() / "libraries"


def load_manifests() -> dict[str, Manifest]:
    """The manifests that the package ships and those that the user added, by slug in alphabetical order."""
    files = [file for folder in library_folders() for file in sorted(folder.glob("*.toml"))]
    manifests = [read_manifest(file) for file in files]
    return dict(sorted({manifest.slug: manifest for manifest in manifests}.items()))


def read_manifest(file: Path) -> Manifest:
    """Read one manifest; ``ConfigError`` if the file is malformed."""
    return _read(file, file.stat().st_mtime_ns)


@functools.cache
def _read(file: Path, modified: int) -> Manifest:
    return Manifest.from_toml(file.read_text(encoding="utf-8"), file.name)


def pip_install(requirements: Sequence[str]) -> str:
    """The command that installs these, quoted for a shell."""
    return shlex.join(["pip", "install", *requirements])


def _content(requirement: str) -> str:
    """A requirement; a folder with a hash of what it holds, because its name does not change when that does."""
    folder = Path(requirement)
    if not folder.is_dir():
        return requirement
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and not any(
            part.startswith((".", "__pycache__", "build")) or "egg-info" in part for part in parts
        ):
            digest.update(f"{'/'.join(parts)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return f"{requirement} {digest.hexdigest()}"


def _importable(modules: Sequence[str]) -> bool:
    return all(importlib.util.find_spec(module.partition(".")[0]) for module in modules)


@functools.cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def _checked(data: dict[str, Any], where: str) -> "Manifest":
    """A manifest of what TOML gives, each value of the type that its class declares for it."""
    from pydantic import ValidationError

    try:
        # As JSON, whose strict reading takes lists for tuples and nothing else for anything.
        return _adapter().validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        # A key that is not known first: it may be the one that is missing, misspelt.
        first = min(error.errors(include_url=False), key=lambda one: one["type"] != "unexpected_keyword_argument")
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            near = ", ".join(part.name for part in fields(Manifest))
            raise ConfigError(f"{where}: there is no key {place}; there are {near}") from None
        got = "" if first["type"] == "missing" else f", got {first['input']!r}"
        raise ConfigError(f"{where}: {place}: {first['msg'][0].lower()}{first['msg'][1:]}{got}") from None
