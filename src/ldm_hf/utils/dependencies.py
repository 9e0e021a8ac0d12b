"""Optional packages: each extra in setup.cfg is what some commands need beyond acting in environments."""

import shlex
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ldm_hf.errors import MissingDependencyError

_PACKAGE = "ldm_hf"


def require(purpose: str, *extras: str) -> None:
    """Check that the packages of some extras are installed, in versions that these allow.

    Args:
        purpose: what needs them, as the subject of a sentence: "`ldm build`".
        *extras: their names in setup.cfg.

    Raises:
        MissingDependencyError: some are not; the message holds the command that installs them.
    """
    try:
        needed = {str(each): each for extra in extras for each in _requirements(extra)}
        missing = [requirement for requirement in needed.values() if not _is_met(requirement)]
    except metadata.PackageNotFoundError:  # run from its source, without having been installed
        return
    if missing:
        arguments = " ".join(shlex.quote(f"{each.name}{_in_brackets(each.extras)}{each.specifier}") for each in missing)
        raise MissingDependencyError(f"{purpose} needs packages that are not installed here: pip install {arguments}")


def _requirements(extra: str) -> Iterator[Requirement]:
    """What an extra adds to the core, by itself and by the extras that it names."""
    for text in metadata.requires(_PACKAGE) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or not marker.evaluate({"extra": extra}) or marker.evaluate({"extra": ""}):
            continue
        if canonicalize_name(requirement.name) == canonicalize_name(_PACKAGE):
            for inner in requirement.extras:
                yield from _requirements(inner)
        else:
            requirement.marker = None
            yield requirement


def _is_met(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def _in_brackets(extras: set[str]) -> str:
    return f"[{','.join(sorted(extras))}]" if extras else ""
