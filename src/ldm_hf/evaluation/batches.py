"""Which environments are rolled out, and which of them together."""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import UnknownEnvironmentError
from ldm_hf.evaluation.known_references import Reference

ALL = "all"


class _OfEnvironment(Protocol):
    @property
    def environment(self) -> str:
        """An id."""


One = TypeVar("One", bound=_OfEnvironment)


def chosen(references: Sequence[One], names: Sequence[str]) -> list[One]:
    """The references that names mean: ``all``, ids of environments, and libraries as a whole.

    Raises:
        UnknownEnvironmentError: there is no reference of a name.
    """
    found: dict[str, One] = {}
    for name in names:
        meant = [one for one in references if name in (ALL, one.environment, _library(one))]
        if not meant:
            known = ", ".join(sorted({_library(one) for one in references}))
            raise UnknownEnvironmentError(f"there is no reference of {name}; there are some of {known}")
        found.update({one.environment: one for one in meant})
    return [found[environment] for environment in sorted(found)]


def batches(references: Sequence[Reference], size: int) -> Iterator[list[str]]:
    """Environments in batches of about the same length of episodes, the longest first.

    A batch continues until its last rollout has ended, so that rollouts of one length waste nothing. Those with images
    are apart, because every row of a batch keeps images if one does.

    Args:
        references: of the environments, which say how long episodes are.
        size: most environments of a batch.
    """
    for with_images in (True, False):
        members = [one for one in references if one.has_image == with_images]
        members.sort(key=lambda one: -one.expected_length)
        for start in range(0, len(members), size):
            yield [one.environment for one in members[start : start + size]]


def _library(reference: _OfEnvironment) -> str:
    return EnvironmentId.parse(reference.environment).library
