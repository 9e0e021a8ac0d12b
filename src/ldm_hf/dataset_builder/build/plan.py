"""What a build would do: environments, who is compatible with what, time and storage."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ldm_hf.dataset_builder.build.budgets import Budget
from ldm_hf.dataset_builder.build.costs import run_bytes, run_seconds
from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget
from ldm_hf.dataset_builder.reference.candidates import Candidate
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.registry import find_manifest, list_environments, spec
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.errors import ConfigError, UnknownEnvironmentError


@dataclass(frozen=True)
class PlannedEnvironment:
    """An environment that is built.

    Attributes:
        spec: what is known of it.
        candidates: names of those that are trained on it.
        incompatible: of the other candidates of the pool, why they are not.
    """

    spec: EnvironmentSpec
    candidates: tuple[str, ...]
    incompatible: Mapping[str, str]

    @property
    def library(self) -> str:
        """Slug of its library."""
        return EnvironmentId.parse(self.spec.id).library


@dataclass(frozen=True)
class Group:
    """Environments of a library on which the same candidates compete: they are ranked together.

    A library whose environments differ in their kinds of spaces has several groups, because points that a candidate gains
    where its rivals cannot be trained say nothing of how it does against them.

    Attributes:
        library: slug.
        candidates: names.
        environments: of the group, sorted by id.
        ranked_on: ids of those that the candidates are ranked on.
    """

    library: str
    candidates: tuple[str, ...]
    environments: tuple[PlannedEnvironment, ...]
    ranked_on: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All that a build does.

    Attributes:
        groups: by library.
        left_out: environments that cannot be built, with the reason.
    """

    groups: tuple[Group, ...]
    left_out: Mapping[str, str]


def make_plan(targets: Sequence[str], pool: Mapping[str, Candidate], budget: Budget | RaceBudget, seed: int) -> Plan:
    """Decide what a build does; the same arguments give the same plan.

    Args:
        targets: ids of environments, and slugs of libraries, of which all newest environments are meant.
        pool: candidates by name.
        budget: how much is trained.
        seed: of the choice where a library has more environments than the budget takes.

    Raises:
        UnknownEnvironmentError: a target does not exist.
        ConfigError: nothing is left to build.
    """
    planned: list[PlannedEnvironment] = []
    left_out: dict[str, str] = {}
    for described in _environments(targets, budget, seed, left_out):
        if described.problems:
            left_out[described.id] = "; ".join(described.problems)
            continue
        candidates = budget.pool(described.id, pool)
        incompatible = budget.incompatible(described, candidates)
        fitting = tuple(name for name in candidates if name not in incompatible)
        if fitting:
            planned.append(PlannedEnvironment(described, fitting, incompatible))
        else:
            left_out[described.id] = f"no candidate can be trained on it: {next(iter(incompatible.values()))}"
    if not planned:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        raise ConfigError(f"none of {', '.join(targets)} can be built: {reasons}")
    return Plan(tuple(_groups(planned, budget, seed)), left_out)


def _environments(
    targets: Sequence[str], budget: Budget | RaceBudget, seed: int, left_out: dict[str, str]
) -> list[EnvironmentSpec]:
    found: dict[str, EnvironmentSpec] = {}
    for target in targets:
        if "/" in target:
            found[target] = spec(target)
            continue
        find_manifest(target)
        members = {described.id: described for described in list_environments(target)}
        if not members:
            raise UnknownEnvironmentError(f"{target} has no environments that were validated; try: ldm env add")
        usable = sorted(name for name, described in members.items() if not described.problems)
        left_out |= {name: "; ".join(one.problems) for name, one in members.items() if one.problems}
        chosen = np.random.default_rng(_seed(seed, target)).permutation(len(usable))[: budget.max_environments]
        found |= {usable[index]: members[usable[index]] for index in chosen}
    return [found[name] for name in sorted(found)]


def _groups(planned: Sequence[PlannedEnvironment], budget: Budget | RaceBudget, seed: int) -> list[Group]:
    by_library: dict[str, dict[tuple[str, ...], list[PlannedEnvironment]]] = {}
    for one in planned:
        by_library.setdefault(one.library, {}).setdefault(one.candidates, []).append(one)
    groups = []
    for library, kinds in by_library.items():
        number = budget.ranking_environments if isinstance(budget, Budget) else 0  # races rank on each environment
        shares = _shares([len(members) for members in kinds.values()], number) if number else [0] * len(kinds)
        for (candidates, members), share in zip(kinds.items(), shares, strict=True):
            order = np.random.default_rng(_seed(seed, library, *candidates)).permutation(len(members))
            ranked_on = tuple(sorted(members[index].spec.id for index in order[:share]))
            groups.append(Group(library, candidates, tuple(members), ranked_on))
    return groups


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """Divide ``total`` by size, by largest remainders, at least 1 and at most its size to each."""
    exact = [size / sum(sizes) * total for size in sizes]
    shares = [min(size, max(1, int(part))) for size, part in zip(sizes, exact, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda index: int(exact[index]) - exact[index])
    for index in by_remainder:
        if sum(shares) < total and shares[index] < sizes[index]:
            shares[index] += 1
    return shares


def _seed(seed: int, *names: str) -> tuple[int, int]:
    return seed, zlib.crc32("/".join(names).encode())


@dataclass(frozen=True)
class Estimate:
    """What a plan costs.

    Attributes:
        ranking_runs, runs: numbers of runs.
        transitions: of all of them.
        core_hours: that they take.
        ranking_share: of these hours that the ranking takes.
        bytes: on disk, if every run is kept.
    """

    ranking_runs: int
    runs: int
    transitions: int
    core_hours: float
    ranking_share: float
    bytes: float


def estimate(plan: Plan, pool: Mapping[str, Candidate], budget: Budget) -> Estimate:
    """Estimate a plan's costs. Which candidates will be chosen is unknown, so that their mean is taken."""
    ranking_runs = runs = transitions = 0
    ranking_seconds = run_seconds_ = size = 0.0
    for group in plan.groups:
        specs = {environment.spec.id: environment.spec for environment in group.environments}
        candidates = [pool[name] for name in group.candidates]
        chosen = min(budget.runs, len(candidates))
        if len(candidates) > budget.runs:
            for name in group.ranked_on:
                for candidate in candidates:
                    amount = budget.ranking_transitions(candidate)
                    ranking_runs += 1
                    transitions += amount
                    ranking_seconds += run_seconds(specs[name], candidate, amount)
        for described in specs.values():
            share = chosen / len(candidates)
            amounts = [budget.run_transitions(candidate) for candidate in candidates]
            runs += chosen
            transitions += round(share * sum(amounts))
            size += share * sum(run_bytes(described, amount) for amount in amounts)
            pairs = zip(candidates, amounts, strict=True)
            run_seconds_ += share * sum(run_seconds(described, candidate, amount) for candidate, amount in pairs)
    total = ranking_seconds + run_seconds_
    return Estimate(ranking_runs, runs, transitions, total / 3600, ranking_seconds / total, size)
