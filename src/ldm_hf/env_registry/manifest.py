"""Manifests: one TOML file a library in ``libraries/``, data only. docs/environments.md describes the keys."""

import functools
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ldm_hf.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_MAX_EPISODE_STEPS = 1000


@dataclass(frozen=True)
class Extra:
    """Packages that a part of a library needs and its plain installation lacks.

    Attributes:
        entry_points: the part: environments whose entry point begins with this.
        imports: modules that must be importable.
        requirements: what pip installs to get them.
    """

    entry_points: str
    imports: tuple[str, ...]
    requirements: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """One library.

    Attributes:
        slug: first part of the ids of its environments.
        requirements: what pip installs; the first is the library itself.
        python: the versions of Python that the library takes, as in package metadata.
        modules: imported so that the library registers its environments.
        packages: an environment belongs to the library if its entry point lies in one of these packages.
        licence: SPDX expression.
        homepage: address of its documentation.
        default_max_episode_steps: time limit of environments that register none.
        broken_entry_points: environments whose entry point begins with one of these only raise: they are left out.
        superseded: glob patterns of ids that are listed only with all versions.
        extras: parts that need more than the plain installation.
    """

    slug: str
    requirements: tuple[str, ...]
    python: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    licence: str
    homepage: str
    default_max_episode_steps: int = DEFAULT_MAX_EPISODE_STEPS
    broken_entry_points: tuple[str, ...] = ()
    superseded: tuple[str, ...] = ()
    extras: tuple[Extra, ...] = ()

    @classmethod
    def from_toml(cls, text: str, source: str) -> "Manifest":
        """Read a manifest; ``source`` names it in the message of the ``ConfigError`` that a malformed one raises."""
        try:
            data = tomllib.loads(text)
            extras = tuple(Extra(**_tuples(extra)) for extra in data.pop("extras", []))
            return cls(**_tuples(data), extras=extras)
        except (tomllib.TOMLDecodeError, TypeError) as error:
            raise ConfigError(f"{source} is not a library manifest: {error}") from error

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


@functools.cache
def load_manifests() -> dict[str, Manifest]:
    """The manifests that the package ships, by slug in alphabetical order."""
    files = [
        file for file in resources.files(__package__).joinpath("libraries").iterdir() if file.name.endswith(".toml")
    ]
    manifests = [Manifest.from_toml(file.read_text(encoding="utf-8"), file.name) for file in files]
    return {manifest.slug: manifest for manifest in sorted(manifests, key=lambda manifest: manifest.slug)}


def pip_install(requirements: Sequence[str]) -> str:
    """The command that installs these, quoted for a shell."""
    return shlex.join(["pip", "install", *requirements])


def _importable(modules: Sequence[str]) -> bool:
    return all(importlib.util.find_spec(module.partition(".")[0]) for module in modules)


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
