"""What a good policy gets on an environment: published scores, optima and bounds (docs/known_scores.md)."""

import csv
import functools
from dataclasses import dataclass, replace
from pathlib import Path

OPTIMUM, BOUND, POLICY, THRESHOLD = KINDS = ("optimum", "bound", "policy", "threshold")
"""What a known good score is: the best expected return, computed; the most that the task gives, where it can be reached;
what a published policy got; the return at which the library calls the environment solved."""

RETURN = "mean return"
"""The metric of scores that can be compared with a mean return: of the undiscounted sum of an episode's rewards."""


@dataclass(frozen=True)
class KnownScore:
    """The known good score of an environment.

    Attributes:
        random: what a random policy got in the same source; None where it does not say.
        good: what a good policy gets.
        metric: what both are: ``RETURN``, or a rate of success.
        kind: one of ``KINDS``.
        source: where it stands: a repository with its commit, or how it was computed.
        note: who got it, and with what.
        comparable: False where a mean return may not be compared with it: another metric, other rewards or time limit.
        measured_on: another version of the environment that it was measured on, ``"v3"``; empty where it is the same.
        threshold: the return at which the library calls the environment solved; None where it does not say.
    """

    random: float | None
    good: float
    metric: str
    kind: str
    source: str
    note: str
    comparable: bool
    measured_on: str = ""
    threshold: float | None = None


def known_score(environment_id: str) -> KnownScore | None:
    """The known good score of an environment; None where there is none.

    Of several rows the first by this order is taken: what can be compared with a mean return before what cannot; an optimum
    before a bound, a policy and a threshold; the same version before another; the higher before the lower.

    Args:
        environment_id: ``<library>/<Gymnasium id>``.
    """
    rows = _rows().get(environment_id)
    return None if rows is None else rows[0]


def known_environments() -> list[str]:
    """The ids of all environments that have a score, sorted."""
    return sorted(_rows())


@functools.cache
def _rows() -> dict[str, list[KnownScore]]:
    rows: dict[str, list[KnownScore]] = {}
    thresholds: dict[str, float] = {}
    with (Path(__file__).parent / "known_scores.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            environment, good, comparable = row["id"], float(row["good"]), row["comparable"] == "yes"
            random = float(row["random"]) if row["random"] else None
            if row["kind"] == THRESHOLD and comparable:
                thresholds[environment] = good
            score = KnownScore(
                random, good, row["metric"], row["kind"], row["source"], row["note"], comparable, row["measured_on"]
            )
            rows.setdefault(environment, []).append(score)
    return {
        environment: sorted((replace(score, threshold=thresholds.get(environment)) for score in scores), key=_order)
        for environment, scores in rows.items()
    }


def _order(score: KnownScore) -> tuple[bool, int, bool, float]:
    return not score.comparable, KINDS.index(score.kind), bool(score.measured_on), -score.good
