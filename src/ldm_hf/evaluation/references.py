"""Which references are worth imitating, and can be told by an evaluation: asked before any model is trained on them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ldm_hf.dataset_builder.anchors.anchors import Anchors, measure_anchors
from ldm_hf.dataset_builder.anchors.flags import flags
from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.dataset_builder.format.schema import RunInfo
from ldm_hf.errors import LDMError
from ldm_hf.evaluation.protocol import Protocol
from ldm_hf.evaluation.results import NOT_MEASURED, reference_flags
from ldm_hf.evaluation.scores import normalized_score

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
        warnings: what speaks against it, one line each; none if it is worth imitating.
        anchors: of the environment; None where they could not be measured.
    """

    info: RunInfo
    random: Sample | None
    deterministic_score: float | None
    resolution: float
    warnings: list[str]
    anchors: Anchors | None = None


def check_reference(
    info: RunInfo, random: Sample | None, episodes: int, anchors: Anchors | None = None
) -> ReferenceCheck:
    """Judge a reference by its own episodes, a random policy's, and trivial ones'.

    Args:
        info: of the run.
        random: returns of a random policy, None if unknown.
        episodes: over which an evaluation averages.
        anchors: of the environment, None if unknown.
    """
    warnings = reference_flags(info, random)
    if info.assessment is not None:
        warnings += [f"it {flag}" for flag in info.flags]
    elif anchors is not None and info.deterministic_returns:
        warnings += [f"it {flag}" for flag in flags(info.deterministic_returns, [], None, anchors)]
    deterministic = normalized_score(info.deterministic_return, info.first10, info.last10)
    if deterministic is not None and math.isnan(deterministic):
        deterministic = None
    if deterministic is not None and deterministic < MIN_DETERMINISTIC:
        warnings.append(f"acting deterministically it reaches {deterministic:.0%} of its training")
    error = info.curve.last.std / math.sqrt(episodes)
    resolution = (info.last10 - info.first10) / error if error else math.copysign(math.inf, info.last10 - info.first10)
    if resolution < MIN_RESOLUTION:
        warnings.append(
            f"{episodes} episodes cannot tell it: it improves by {resolution:.1f} standard errors of their mean"
        )
    return ReferenceCheck(info, random, deterministic, resolution, warnings, anchors)


def check_references(
    references: Sequence[EnvironmentDataset],
    protocol: Protocol = Protocol(),
    checked: Callable[[ReferenceCheck], None] = lambda check: None,
) -> list[ReferenceCheck]:
    """Judge the best run of each environment; random and trivial policies act in it, unless that was measured before.

    Args:
        references: the environments.
        protocol: of the evaluation to come.
        checked: told of each.
    """
    checks = []
    for reference in references:
        environment, episodes = reference.environment, protocol.episodes * protocol.rollouts
        try:
            anchors = measure_anchors(environment, step_timeout=protocol.step_timeout)
            check = check_reference(reference.info, anchors.random, episodes, anchors)
        except LDMError as error:
            check = check_reference(reference.info, None, episodes)
            check = replace(check, warnings=[*check.warnings, f"{NOT_MEASURED}: {error}"])
        checks.append(check)
        checked(check)
    return checks
