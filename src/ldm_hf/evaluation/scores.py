"""Scores, their intervals, and the curve of environments above a threshold (paper section 5.1)."""

import warnings
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
_RESAMPLES_AT_ONCE = 100  # so that thousands of environments fit into memory
_NEARLY = 1e-9  # rounding of the division must not push a score of exactly 0.8 below 0.8

Interval = tuple[float, float]


def normalized_score(mean_return: float, first10: float, last10: float) -> float | None:
    """The share of the reference run's improvement that a return reaches: 0 at ``first10``, 1 at ``last10``.

    Any two anchors will do: a random policy's return instead of the first, the deterministic reference's instead of the
    second. None where the second is not above the first, so that the share has no meaning.
    """
    if not last10 > first10:
        return None
    return (mean_return - first10) / (last10 - first10)


def threshold_curve(scores: Sequence[float | None], thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """The number of environments whose score is at least each threshold; unscored ones reach none."""
    reached = np.array([score for score in scores if score is not None], float)
    return (reached[None] >= np.asarray(thresholds, float)[:, None] - _NEARLY).sum(1)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """The 95 % interval of a mean.

    Of values that are 0 or 1, which are successes, it is Clopper and Pearson's, exact for every rate and number. Of others
    it is the bias-corrected and accelerated bootstrap's over the values, with a fixed seed; if all are the same, of no
    width. None of fewer than two values, of which nothing can be said.
    """
    from scipy import stats

    if len(values) < 2:
        return None
    if set(values) <= {0, 1}:
        exact = stats.binomtest(int(sum(values)), len(values)).proportion_ci(CONFIDENCE, method="exact")
        return float(exact.low), float(exact.high)
    if np.allclose(values, values[0], rtol=_NEARLY, atol=0):  # but for rounding, of which the bootstrap makes NaN
        return float(min(values)), float(max(values))
    found = stats.bootstrap(
        (np.asarray(values, float),),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def share_interval(scores: Sequence[Sequence[float]], threshold: float) -> Interval | None:
    """The 95 % interval of the share of environments at or above a threshold: a bootstrap over each one's episodes.

    Args:
        scores: of each environment, the scores of its episodes; an environment's own score is their mean.
        threshold: the score to reach.
    """
    from scipy import stats

    samples = [np.asarray(values, float) for values in scores if len(values) > 1]
    if len(samples) < len(scores) or not samples:
        return None

    def share(*resampled: np.ndarray, axis: int) -> np.ndarray:
        reached = [values.mean(axis) >= threshold - _NEARLY for values in resampled]
        return np.mean(reached, axis=0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # every share the same: an interval of no width
        found = stats.bootstrap(
            samples,
            share,
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            batch=_RESAMPLES_AT_ONCE,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return float(found.low), float(found.high)
