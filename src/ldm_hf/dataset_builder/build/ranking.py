"""Ranks candidates by how often Welch's t-test finds one above another (paper section 4.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ldm_hf.dataset_builder.curves import Sample, significantly_higher

Results = Mapping[str, Mapping[str, Sample | None]]
"""Final performance by environment and candidate: the returns of the last 10 % of episodes; None of a failed run."""


@dataclass(frozen=True)
class Rank:
    """A candidate's place.

    Attributes:
        candidate: its name.
        points: how many times it is significantly above another candidate, summed over environments.
        share: mean over environments of its mean return's place between the worst (0) and the best (1): breaks ties.
    """

    candidate: str
    points: int
    share: float


def points(performances: Mapping[str, Sample | None]) -> dict[str, int]:
    """Points of the candidates on one environment: one for each other candidate that is significantly lower.

    A candidate whose run failed gets none, and gives none to the others: a failure says nothing of returns.
    """
    finished = {name: sample for name, sample in performances.items() if sample is not None}
    return {
        name: sum(significantly_higher(finished[name], other) for rival, other in finished.items() if rival != name)
        if name in finished
        else 0
        for name in performances
    }


def rank(results: Results) -> list[Rank]:
    """Rank the candidates of a library over its subset of environments, the best first.

    Ties are broken by the place of the mean returns between worst and best, then by the order in the pool.
    """
    totals: dict[str, int] = {}
    shares: dict[str, list[float]] = {}
    for performances in results.values():
        for name, gained in points(performances).items():
            totals[name] = totals.get(name, 0) + gained
        for name, share in _shares(performances).items():
            shares.setdefault(name, []).append(share)
    ranks = [Rank(name, totals[name], sum(shares[name]) / len(shares[name])) for name in totals]
    return sorted(ranks, key=lambda one: (-one.points, -one.share))


def best(ranks: Sequence[Rank], number: int) -> list[str]:
    """Names of the first candidates of a ranking."""
    return [one.candidate for one in ranks[:number]]


def _shares(performances: Mapping[str, Sample | None]) -> dict[str, float]:
    means = [sample.mean for sample in performances.values() if sample is not None]
    if not means:
        return dict.fromkeys(performances, 0.0)
    low, span = min(means), max(means) - min(means)
    return {
        name: 0.0 if sample is None else (sample.mean - low) / span if span else 1.0
        for name, sample in performances.items()
    }
