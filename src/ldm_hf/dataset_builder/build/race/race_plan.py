"""What races cost, and what they give: for ``ldm build --dry-run``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ldm_hf.dataset_builder.build.costs import run_bytes, run_seconds
from ldm_hf.dataset_builder.build.plan import Plan
from ldm_hf.dataset_builder.build.race.field import order
from ldm_hf.dataset_builder.build.race.race import FIELD, ROUNDS, sizes
from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget
from ldm_hf.dataset_builder.reference.candidates import Candidate
from ldm_hf.env_registry.spec import EnvironmentSpec

_ANCHOR_SECONDS = 180.0  # the most that anchors of an environment take: random policies and trivial ones


@dataclass(frozen=True)
class RaceEstimate:
    """What the races of a plan cost.

    Attributes:
        environments: that are raced on.
        slices: of all races that are run to their ends.
        core_hours: of the races, with what continues them.
        anchor_hours: that are spent at most before, where anchors are not measured yet.
        least, most: transitions of each environment's winner, if it is the slowest or the fastest of its field.
        bytes: on disk, if every winner is the fastest.
    """

    environments: int
    slices: int
    core_hours: float
    anchor_hours: float
    least: tuple[int, ...]
    most: tuple[int, ...]
    bytes: float


def estimate_races(plan: Plan, pool: Mapping[str, Candidate], budget: RaceBudget) -> RaceEstimate:
    """Estimate the costs of races, which are limited by time: what is unknown is how much is trained in it."""
    least, most, size, slices = [], [], 0.0, 0
    for group in plan.groups:
        for environment in group.environments:
            described, candidates = environment.spec, budget.pool(environment.spec.id, pool)
            field = order(environment.candidates, ())[:FIELD]
            amounts = [winner_transitions(described, candidates[name], len(field), budget) for name in field]
            least.append(min(amounts))
            most.append(max(amounts))
            size += run_bytes(described, max(amounts))
            slices += sum(sizes(len(field)))
    number = len(most)
    hours = number * budget.seconds / 3600
    return RaceEstimate(number, slices, hours, number * _ANCHOR_SECONDS / 3600, tuple(least), tuple(most), size)


def winner_transitions(described: EnvironmentSpec, candidate: Candidate, field: int, budget: RaceBudget) -> int:
    """Transitions that a candidate makes if it wins a race of ``field`` candidates."""
    later = sum(budget.slice_seconds(number, field) for number in range(1, ROUNDS))
    return budget.first_transitions(described, candidate, field) + round(later / run_seconds(described, candidate, 1))


def middle(values: Sequence[int]) -> int:
    """The median of some numbers, the higher of two."""
    return sorted(values)[len(values) // 2]
