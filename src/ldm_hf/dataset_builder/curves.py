"""Learning curves: what the returns of a training run's episodes say, and whether one lot is higher than another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldm_hf.errors import EnvironmentFailure

SIGNIFICANCE = 0.05
"""Level of every one-tailed Welch's t-test."""

MIN_EPISODES = 10
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
        first, last: returns of the first and of the last 10 % of the episodes (paper section 4.2).
        transitions: of the points of the curve: transitions that were made when the episodes of a point had ended.
        returns: of the points: mean return of a few consecutive episodes.
    """

    first: Sample
    last: Sample
    transitions: list[int]
    returns: list[float]

    @classmethod
    def of(
        cls,
        returns: Sequence[float] | np.ndarray,
        ends: Sequence[int] | np.ndarray,
        least: int = MIN_EPISODES,
    ) -> "LearningCurve":
        """Summarise episodes in the order of their ends.

        Args:
            returns: of the episodes.
            ends: how many transitions the run had made when each ended.
            least: episodes that are needed.

        Raises:
            EnvironmentFailure: fewer episodes ended, too few to tell, or their returns are not finite.
        """
        values = np.asarray(returns, np.float64)
        if len(values) < least:
            raise EnvironmentFailure(
                f"only {len(values)} episodes ended; at least {least} are needed: train for longer"
            )
        if not np.isfinite(values).all():
            raise EnvironmentFailure(
                f"{np.sum(~np.isfinite(values))} of {len(values)} episodes have no finite return: nothing can be scored"
            )
        share = max(1, len(values) // 10)
        edges = np.linspace(0, len(values), min(len(values), _MAX_POINTS) + 1).round().astype(int)
        return cls(
            Sample.of(values[:share]),
            Sample.of(values[-share:]),
            np.asarray(ends, np.int64)[edges[1:] - 1].tolist(),
            (np.add.reduceat(values, edges[:-1]) / np.diff(edges)).tolist(),
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "LearningCurve":
        """Read what ``dataclasses.asdict`` gave."""
        return cls(Sample(**data["first"]), Sample(**data["last"]), data["transitions"], data["returns"])
