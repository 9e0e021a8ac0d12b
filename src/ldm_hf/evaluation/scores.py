"""Normalised scores and the curve of environments above a threshold (paper section 5.1)."""

from collections.abc import Sequence

import numpy as np


def normalized_score(mean_return: float, first10: float, last10: float) -> float | None:
    """The share of the reference run's improvement that a return reaches: 0 at ``first10``, 1 at ``last10``.

    None where the reference did not improve, so that the share has no meaning.
    """
    if not last10 > first10:
        return None
    return (mean_return - first10) / (last10 - first10)


def threshold_curve(scores: Sequence[float | None], thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """The number of environments whose score is at least each threshold; unscored ones reach none."""
    reached = np.array([score for score in scores if score is not None], float)
    # Rounding of the division must not push a score of exactly 0.8 below 0.8.
    return (reached[None] >= np.asarray(thresholds, float)[:, None] - 1e-9).sum(1)
