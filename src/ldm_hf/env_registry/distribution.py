"""What the metadata of an installed package say: its version, modules, licence and homepage."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from ldm_hf.env_registry.manifest import Manifest
from ldm_hf.env_registry.venv import VenvProvider
from ldm_hf.errors import ConfigError

_LICENCES = {"MIT License": "MIT", "Apache Software License": "Apache-2.0", "BSD License": "BSD-3-Clause"}


@dataclass(frozen=True)
class Distribution:
    """What the metadata of an installed package say of it."""

    name: str
    version: str
    modules: tuple[str, ...]
    licence: str
    homepage: str


def find_distribution(provider: VenvProvider) -> Distribution:
    """What the metadata of a manifest's first requirement say, in its installation."""
    name = _pin_name(provider.manifest, provider.packages())
    packages = next((provider.folder / "lib").glob("python*/site-packages"))
    for info in sorted(packages.glob("*.*-info")):
        metadata_file = info / ("METADATA" if info.suffix == ".dist-info" else "PKG-INFO")
        if not metadata_file.exists():
            continue
        metadata = HeaderParser().parsestr(metadata_file.read_text(encoding="utf-8", errors="replace"))
        if normal_name(metadata["Name"] or "") == name:
            links = [link.partition(",")[2].strip() for link in metadata.get_all("Project-URL") or []]
            homepage = metadata["Home-page"] or next(iter(links), "")
            return Distribution(name, metadata["Version"], _modules(info), _licence(metadata), homepage)
    raise ConfigError(f"the requirement {provider.manifest.requirements[0]!r} installed no package {name!r}")


def _modules(info: Path) -> tuple[str, ...]:
    top_level = info / "top_level.txt"
    if top_level.exists():
        names = top_level.read_text(encoding="utf-8").split()
    else:
        files = [line.partition(",")[0] for line in (info / "RECORD").read_text(encoding="utf-8").splitlines()]
        names = [Path(file).parts[0].removesuffix(".py") for file in files if file.endswith(".py")]
    there = [name for name in dict.fromkeys(names) if name.isidentifier() and any(info.parent.glob(f"{name}*"))]
    return tuple(name for name in there if name not in ("tests", "test", "docs", "examples", "scripts", "benchmarks"))


def _licence(metadata: Any) -> str:
    expression = metadata["License-Expression"] or ""
    classifiers = [
        line.rpartition("::")[2].strip() for line in metadata.get_all("Classifier") or [] if "License ::" in line
    ]
    named = next((_LICENCES.get(one, one) for one in classifiers), "")
    text = (metadata["License"] or "").strip().splitlines()
    written = text[0][:60] if text and text[0].upper() != "UNKNOWN" else ""
    return expression or named or written or "unknown"


def _pin_name(manifest: Manifest, lock: Iterable[str] | None = None) -> str:
    """The normalised name of the package that a manifest's first requirement installs."""
    first = manifest.requirements[0]
    source = first.partition(" @ ")[2] or first
    if "://" in source or Path(source).exists():
        wanted = source.removeprefix("git+").partition("#")[0].removesuffix(".git")
        for line in lock if lock is not None else manifest.lock:
            name, _, origin = line.partition(" @ ")
            if origin and _same_source(origin, wanted):
                return normal_name(name)
    match = re.match(r"[\w.-]+", first)
    return normal_name(match[0]) if match else first


def _same_source(origin: str, wanted: str) -> bool:
    origin = origin.removeprefix("git+").removeprefix("file://")
    base = re.sub(r"@[0-9a-f]{7,40}$", "", wanted)
    local = str(Path(wanted).resolve()) if "://" not in wanted else wanted
    return origin.startswith(base) or origin.startswith(local)


def pinned_version(manifest: Manifest) -> str:
    """Version of the library in a manifest's lock; empty where it is no release."""
    pins = [line.partition("==") for line in manifest.lock]
    return next((version for name, _, version in pins if normal_name(name) == _pin_name(manifest)), "")


def normal_name(name: str) -> str:
    """A package's name as indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()
