"""Learning curves: what the returns of a training run's episodes say, and whether one lot is higher than another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldm_hf.errors import EnvironmentFailure

SIGNIFICANCE = 0.05
"""Level of every one-tailed Welch's t-test."""

BY_START, BY_END = "start", "end"
"""The order in which a curve takes its episodes. Ends put short episodes first where several environments run at once."""

BY_POLICY = "policy"
"""Of rollouts of a policy that learns nothing: ``first`` is of a random policy, ``last`` its own, deterministic."""

MIN_EPISODES = 10
WINDOW = 10
"""Episodes of a curve's ``first`` and ``last`` at least: 10 % of a short run are too few to tell anything."""

_MAX_POINTS = 200  # of a curve that is kept for plots


@dataclass(frozen=True)
class Sample:
    """What Welch's t-test needs of some returns: mean, unbiased standard deviation (0 of a single one), number."""

    mean: float
    std: float
    size: int

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> "Sample":
        """Describe at least one value."""
        array = np.asarray(values, np.float64)
        return cls(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0, len(array))


def significantly_higher(one: Sample, other: Sample) -> bool:
    """Whether a one-tailed Welch's t-test says that the mean of one is above that of the other.

    A sample of one value is never told apart. Samples that do not vary at all, of which the test knows nothing, are
    compared by their means.
    """
    from scipy import stats

    if min(one.size, other.size) < 2:
        return False
    if one.std == other.std == 0:
        return one.mean > other.mean
    test = stats.ttest_ind_from_stats(
        *(one.mean, one.std, one.size), *(other.mean, other.std, other.size), equal_var=False, alternative="greater"
    )
    return bool(test.pvalue < SIGNIFICANCE)


@dataclass(frozen=True)
class LearningCurve:
    """The training episodes of a run.

    Attributes:
        first, last: returns of the first and of the last 10 % of the episodes (paper section 4.2), by their start; ten
            episodes at least, or half of the episodes where there are fewer than twenty.
        transitions: of the points of the curve: transitions that the run had made when the last episode of a point began.
        returns: of the points: mean return of a few consecutive episodes.
        order: ``BY_START``; ``BY_END`` of data of format version 2, whose curves took episodes in the order of their ends,
            and whose ``transitions`` are those that had been made at these ends; ``BY_POLICY`` of rollouts, whose ``first``
            and ``last`` are not episodes of the curve.
    """

    first: Sample
    last: Sample
    transitions: list[int]
    returns: list[float]
    order: str = BY_START

    @classmethod
    def of(
        cls,
        returns: Sequence[float] | np.ndarray,
        starts: Sequence[int] | np.ndarray,
        least: int = MIN_EPISODES,
    ) -> "LearningCurve":
        """Summarise episodes by their start: every episode that was begun, each played to its end.

        The return of an episode depends on its length, so its length must not decide where it is counted, or whether.

        Args:
            returns: of the episodes, in any order.
            starts: how many transitions the run had made when each began; episodes that began together keep their order.
            least: episodes that are needed.

        Raises:
            EnvironmentFailure: there are fewer episodes, too few to tell, or their returns are not finite.
        """
        values, begun = np.asarray(returns, np.float64), np.asarray(starts, np.int64)
        if len(values) < least:
            raise EnvironmentFailure(f"only {len(values)} episodes; at least {least} are needed: train for longer")
        if not np.isfinite(values).all():
            raise EnvironmentFailure(
                f"{np.sum(~np.isfinite(values))} of {len(values)} episodes have no finite return: nothing can be scored"
            )
        order = np.argsort(begun, kind="stable")
        values, begun = values[order], begun[order]
        share = max(1, len(values) // 10, min(WINDOW, len(values) // 2))
        edges = np.linspace(0, len(values), min(len(values), _MAX_POINTS) + 1).round().astype(int)
        return cls(
            Sample.of(values[:share]),
            Sample.of(values[-share:]),
            begun[edges[1:] - 1].tolist(),
            (np.add.reduceat(values, edges[:-1]) / np.diff(edges)).tolist(),
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "LearningCurve":
        """Read what ``dataclasses.asdict`` gave."""
        first, last = Sample(**data["first"]), Sample(**data["last"])
        return cls(first, last, data["transitions"], data["returns"], data["order"])
