"""Which environments are rolled out, and which of them together."""

from collections.abc import Iterator, Sequence

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.dataset_builder.format.schema import RunInfo
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import UnknownEnvironmentError
from ldm_hf.modeling.spaces_ldm import SlotLayout

ALL = "all"


def chosen(references: Sequence[EnvironmentDataset], names: Sequence[str]) -> list[EnvironmentDataset]:
    """The references that names mean: ``all``, ids of environments, and libraries as a whole.

    Raises:
        UnknownEnvironmentError: there is no reference of a name.
    """
    found: dict[str, EnvironmentDataset] = {}
    for name in names:
        meant = [one for one in references if name in (ALL, one.environment, _library(one))]
        if not meant:
            known = ", ".join(sorted({_library(one) for one in references}))
            raise UnknownEnvironmentError(f"the data have no reference of {name}; they have some of {known}")
        found.update({one.environment: one for one in meant})
    return [found[environment] for environment in sorted(found)]


def batches(infos: Sequence[RunInfo], size: int) -> Iterator[list[str]]:
    """Environments in batches of about the same length of episodes, the longest first.

    A batch continues until its last rollout has ended, so that rollouts of one length waste nothing. Those with images
    are apart, because every row of a batch keeps images if one does.

    Args:
        infos: reference runs, whose recorded episodes say how long episodes are.
        size: most environments of a batch.
    """
    images: dict[bool, list[RunInfo]] = {True: [], False: []}
    for info in infos:
        images[SlotLayout.of(info.observation_space).image is not None].append(info)
    for members in images.values():
        members.sort(key=lambda info: -expected_length(info))
        for start in range(0, len(members), size):
            yield [info.environment for info in members[start : start + size]]


def expected_length(info: RunInfo) -> float:
    """Mean transitions of the recorded episodes."""
    return info.num_transitions / max(1, info.num_episodes)


def _library(reference: EnvironmentDataset) -> str:
    return EnvironmentId.parse(reference.environment).library
