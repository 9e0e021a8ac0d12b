"""Races: successive halving among the candidates of one environment, as a function of what their slices showed.

A field of candidates each train for a slice; the better half resumes for a slice of twice the time, and so on, until one is
left: Jamieson and Talwalkar, 2016 (arXiv 1502.07943), with runs that are continued instead of begun again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ldm_hf.dataset_builder.build.race.slice_results import SliceResult
from ldm_hf.dataset_builder.curves import Sample, significantly_higher

NEAR_GOOD = 0.95
"""Place between random (0) and known good (1) at which a race is over."""

ROUNDS = 4
FIELD = 2 ** (ROUNDS - 1)
"""Candidates that a race has at most: halved in each round, one is left for the last."""

MOST_RUNS = 3
"""Runs of a race that are written, one after another, until one is fit to be kept."""


def sizes(candidates: int) -> list[int]:
    """How many of a field of candidates take part in each round."""
    return [-(-candidates // 2**number) for number in range(ROUNDS)]


def first_seconds(candidates: int, seconds: float) -> float:
    """Time of each slice of the first round, if a race of this many candidates is to take ``seconds`` in total."""
    return seconds / sum(size * 2**number for number, size in enumerate(sizes(candidates)))


def core_seconds(seconds: float, jobs: int, candidates: int = FIELD) -> float:
    """Core time of a race that ends after ``seconds``, if ``jobs`` slices are trained at a time.

    The last rounds have fewer slices than a machine has cores, so that more of these end it sooner only to a point.
    """
    rounds = [(size, 2**number) for number, size in enumerate(sizes(candidates))]
    used, lasted = (
        sum(size * length for size, length in rounds),
        sum(-(-size // jobs) * length for size, length in rounds),
    )
    return seconds * used / lasted


@dataclass(frozen=True)
class Standing:
    """How a race stands.

    Attributes:
        number: of the round that is run, or was the last.
        running: candidates of that round, in the order of the field.
        missing: those of them whose slice is to be made.
        order: all candidates, the best first; those that still race come first, in the order of the field.
        dropped: why each candidate is out.
    """

    number: int
    running: tuple[str, ...]
    missing: tuple[str, ...]
    order: tuple[str, ...]
    dropped: Mapping[str, str]

    @property
    def is_over(self) -> bool:
        """Whether the race is decided, or nobody is left in it."""
        return not self.missing


def stand(
    runs: Mapping[str, Sequence[SliceResult]], target: float | None, families: Mapping[str, str] | None = None
) -> Standing:
    """How a race stands.

    Args:
        runs: slices of each candidate of the field so far, in the order of the field.
        target: the return that is near known good, or None where it is not known.
        families: of the candidates. After the first round, the best of each continues: those that learn from a replay buffer
            begin to do so late, and then need fewer transitions.
    """
    alive, dropped = list(runs), dict[str, str]()
    out: list[str] = []  # the last that was dropped first
    for number in range(ROUNDS):
        for name in list(alive):
            slices = runs[name]
            failure = slices[number].failure if len(slices) > number else None
            if failure is not None:
                alive.remove(name)
                out.insert(0, name)
                dropped[name] = f"slice {number}: {failure}"
        if winners := [name for name in alive if reached(runs[name][: number + 1], target)]:
            best = max(winners, key=lambda name: _confirmed(runs[name][: number + 1]))
            rest = [name for name in alive if name != best]
            behind = [*_ranked(rest, runs, number), *out]
            dropped |= dict.fromkeys(rest, f"slice {number}: {best} reached known good")
            return Standing(number, tuple(alive), (), (best, *behind), dropped)
        missing = tuple(name for name in alive if len(runs[name]) <= number)
        if missing or not alive:
            return Standing(number, tuple(alive), missing, (*alive, *out), dropped)
        ranked = _ranked(alive, runs, number)
        kept = ranked[: -(-len(ranked) // 2) if number < ROUNDS - 1 else 1]
        if number == 0 and families is not None:
            kept = _with_each_family(kept, ranked, families)
        for place, name in reversed(list(enumerate(ranked))):
            if name not in kept:
                out.insert(0, name)
                dropped[name] = f"slice {number}: place {place + 1} of {len(ranked)}"
        alive = [name for name in alive if name in kept]
    return Standing(ROUNDS - 1, tuple(alive), (), (*alive, *out), dropped)


def reached(slices: Sequence[SliceResult], target: float | None) -> bool:
    """Whether a run has come near known good: in the slice's episodes, and in further ones on other seeds."""
    return target is not None and any(one.confirmed and np.mean(one.confirmed) >= target for one in slices)


def best_slice(slices: Sequence[SliceResult]) -> int:
    """The slice whose policy is the run's: the last whose deterministic return is not significantly below the highest."""
    samples = [Sample.of(one.confirmed or one.deterministic) for one in slices if one.failure is None]
    highest = max(samples, key=lambda sample: sample.mean)
    return max(number for number, sample in enumerate(samples) if not significantly_higher(highest, sample))


def places(results: Mapping[str, SliceResult]) -> dict[str, float]:
    """Sum of a candidate's places by deterministic and by training returns of a round, from 0, the best; ties share a place.

    Places and not returns are added, because one candidate's return of minus a million would make all others equal.
    """
    total = dict.fromkeys(results, 0.0)
    for values in (
        {name: float(np.mean(one.deterministic)) for name, one in results.items()},
        {name: -np.inf if one.training is None else one.training.mean for name, one in results.items()},
    ):
        for name, value in values.items():
            higher, equal = (
                sum(other > value for other in values.values()),
                sum(other == value for other in values.values()),
            )
            total[name] += higher + (equal - 1) / 2
    return total


def _ranked(names: Sequence[str], runs: Mapping[str, Sequence[SliceResult]], number: int) -> list[str]:
    """Names by the round's slices, the best first; those that have none last, ties by the order in which they are given."""
    made = {name: runs[name][number] for name in names if len(runs[name]) > number}
    summed = places(made)
    return sorted(names, key=lambda name: summed.get(name, np.inf))


def _with_each_family(kept: Sequence[str], ranked: Sequence[str], families: Mapping[str, str]) -> list[str]:
    """Give the last place to the best of a family that has none, if others of the family that has it are kept."""
    found = list(kept)
    for family in dict.fromkeys(families[name] for name in ranked):
        own = [families[name] for name in found]
        if family not in own and own.count(own[-1]) > 1:
            found[-1] = next(name for name in ranked if families[name] == family)
    return found


def _confirmed(slices: Sequence[SliceResult]) -> float:
    return max(float(np.mean(one.confirmed)) for one in slices if one.confirmed)
