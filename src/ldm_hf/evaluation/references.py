"""Which references are worth imitating, and can be told by an evaluation: asked before any model is trained on them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.dataset_builder.reader import EnvironmentDataset
from ldm_hf.dataset_builder.schema import RunInfo
from ldm_hf.errors import LDMError
from ldm_hf.evaluation.random_policy import random_returns
from ldm_hf.evaluation.results import reference_flags
from ldm_hf.evaluation.rollout import Protocol
from ldm_hf.evaluation.scores import normalized_score
from ldm_hf.evaluation.versions import versions_here

MIN_DETERMINISTIC = 0.9
"""Share of its improvement that a reference must keep when it acts deterministically, which is what models imitate."""

MIN_RESOLUTION = 3.0
"""Standard errors of an evaluation's mean return that the improvement of a reference must span."""


@dataclass(frozen=True)
class ReferenceCheck:
    """What a reference run is worth as a teacher and as a scale.

    Attributes:
        info: of the run.
        random: returns of a random policy; None where they could not be measured.
        deterministic_score: of its final policy acting deterministically, 1 being the last 10 % of its training.
        resolution: standard errors, of the mean return of as many episodes as the protocol has, from 0 % to 100 %.
        doubts: what speaks against it, one line each; none if it is worth imitating.
    """

    info: RunInfo
    random: Sample | None
    deterministic_score: float | None
    resolution: float
    doubts: list[str]


def check_reference(info: RunInfo, random: Sample | None, episodes: int) -> ReferenceCheck:
    """Judge a reference by its own episodes and a random policy's.

    Args:
        info: of the run.
        random: returns of a random policy, None if unknown.
        episodes: over which an evaluation averages.
    """
    doubts = reference_flags(info, random)
    deterministic = normalized_score(info.deterministic_return, info.first10, info.last10)
    if deterministic is not None and math.isnan(deterministic):
        deterministic = None
    if deterministic is not None and deterministic < MIN_DETERMINISTIC:
        doubts.append(f"acting deterministically it reaches {deterministic:.0%} of its training")
    error = info.curve.last.std / math.sqrt(episodes)
    resolution = (info.last10 - info.first10) / error if error else math.copysign(math.inf, info.last10 - info.first10)
    if resolution < MIN_RESOLUTION:
        doubts.append(
            f"{episodes} episodes cannot tell it: it improves by {resolution:.1f} standard errors of their mean"
        )
    return ReferenceCheck(info, random, deterministic, resolution, doubts)


def check_references(
    references: Sequence[EnvironmentDataset],
    protocol: Protocol = Protocol(),
    checked: Callable[[ReferenceCheck], None] = lambda check: None,
) -> list[ReferenceCheck]:
    """Judge the best run of each environment; a random policy acts in it, unless that was measured before.

    Args:
        references: the environments.
        protocol: of the evaluation to come.
        checked: told of each.
    """
    checks = []
    for reference in references:
        environment, episodes = reference.environment, protocol.episodes * protocol.rollouts
        try:
            random = random_returns(environment, versions_here(environment), protocol.step_timeout)
            check = check_reference(reference.info, random, episodes)
        except LDMError as error:
            check = check_reference(reference.info, None, episodes)
            check = replace(check, doubts=[*check.doubts, f"a random policy was not measured: {error}"])
        checks.append(check)
        checked(check)
    return checks
