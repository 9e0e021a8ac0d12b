"""What ran an environment when its data were made, and what runs it now."""

import importlib.metadata
import platform

from ldm_hf.dataset_builder.format.schema import RunInfo
from ldm_hf.env_registry import registry

_PACKAGES = ("ldm_hf", "gymnasium", "numpy", "torch", "transformers")
_IN_PROCESS = ("gymnasium", "numpy")  # of this process, which an isolated environment does not share
_COMPARED = ("library", "provider", "python", "build", "image", "digest", *_IN_PROCESS)


def package_versions() -> dict[str, str]:
    """Versions of what evaluates."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **found}


def versions_here(environment: str) -> dict[str, str]:
    """The library's version, and what ``make`` runs the environment in.

    Raises:
        LDMError: there is no such environment, or what it runs in cannot be asked.
    """
    return _flat(registry.library_version(environment), registry.provenance(environment), package_versions())


def versions_of_data(info: RunInfo) -> dict[str, str]:
    """The same of the run that made the data."""
    return _flat(info.library_version, info.provenance, info.packages)


def differences(data: dict[str, str], here: dict[str, str]) -> list[str]:
    """One line for each version, build or digest that is known of both sides and is not the same."""
    known = [name for name in _COMPARED if name in data and name in here]
    return [
        f"{name} is {here[name]}, and was {data[name]} when the data were made"
        for name in known
        if not _same(data[name], here[name])
    ]


def _flat(library: str | None, provenance: dict[str, str], packages: dict[str, str]) -> dict[str, str]:
    found = dict(provenance)
    if library is not None:
        found["library"] = library
    if found.get("provider") == "inprocess":
        found.update({name: packages[name] for name in _IN_PROCESS if name in packages})
    return found


def _same(one: str, other: str) -> bool:
    """Whether two versions agree as far as both are given: 3.11 and 3.11.7 do."""
    return all(a == b for a, b in zip(one.split("."), other.split("."), strict=False))
