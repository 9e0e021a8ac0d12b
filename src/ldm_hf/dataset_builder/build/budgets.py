"""How much is trained: races against time, the paper's amounts, and what a CPU can do in minutes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget
from ldm_hf.dataset_builder.curves import MIN_EPISODES
from ldm_hf.dataset_builder.reference.candidates import OFF_POLICY, Candidate
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.errors import ConfigError

_LATEST_START = 1 / 3  # share of a run before which an algorithm must begin to learn


@dataclass(frozen=True)
class Budget:
    """Amounts of training.

    Attributes:
        transitions: of a run.
        shares: of these transitions that the runs of an algorithm get, where it is not all of them.
        ranking_share: of a run's transitions that a run of the ranking gets.
        ranking_environments: environments of a library that candidates are ranked on.
        runs: candidates that are trained on each environment.
        max_environments: of a library.
    """

    transitions: int
    shares: Mapping[str, float] = field(default_factory=dict)
    ranking_share: float = 1.0
    ranking_environments: int = 5
    runs: int = 3
    max_environments: int = 250

    def run_transitions(self, candidate: Candidate) -> int:
        """Transitions of a run of a candidate."""
        return round(self.transitions * self.shares.get(candidate.algorithm, 1.0))

    def ranking_transitions(self, candidate: Candidate) -> int:
        """Transitions of a run of the ranking."""
        return round(self.run_transitions(candidate) * self.ranking_share)

    def pool(self, environment: str, pool: Mapping[str, Candidate]) -> Mapping[str, Candidate]:
        """The candidates of an environment."""
        return pool

    def incompatible(self, described: EnvironmentSpec, pool: Mapping[str, Candidate]) -> dict[str, str]:
        """Why candidates of a pool are not trained on an environment, by their names."""
        ranked = len(pool) > self.runs
        return {
            name: reason
            for name, candidate in pool.items()
            if (
                reason := candidate.incompatibility(described.observation_space, described.action_space)
                or self.shortfall(candidate, described.max_episode_steps, ranked=ranked)
            )
            is not None
        }

    def shortfall(self, candidate: Candidate, max_episode_steps: int, *, ranked: bool = True) -> str | None:
        """Why a run of the ranking, or the run itself where none is ranked, is too short to show anything, or None.

        It must begin to learn early in it. An algorithm that keeps a replay buffer must also finish enough episodes even if
        all last to the limit; the others are fast, and are tried where episodes may be shorter than their limit.
        """
        transitions = self.ranking_transitions(candidate) if ranked else self.run_transitions(candidate)
        starts = candidate.first_update
        if starts > transitions * _LATEST_START:
            return f"begins to learn after {starts:,} of {transitions:,} transitions"
        if candidate.algorithm in OFF_POLICY and transitions < MIN_EPISODES * max_episode_steps:
            return (
                f"{transitions:,} transitions may end fewer than {MIN_EPISODES} episodes of {max_episode_steps:,} steps"
            )
        return None


BUDGETS: dict[str, Budget | RaceBudget] = {
    "race": RaceBudget(),
    # Section 4.2: the top 3 of the ranking on at most 250 environments per library, 3 million transitions each.
    "paper": Budget(3_000_000),
    # Off-policy algorithms are 20 to 50 times slower on a CPU, and need fewer transitions.
    "small": Budget(
        60_000,
        shares={"DQN": 0.25, "QRDQN": 0.25, "DDPG": 0.1, "SAC": 0.1, "TD3": 0.1, "TQC": 0.1},
        ranking_share=0.25,
        ranking_environments=3,
    ),
}


def choose_budget(name: str, transitions: int | None = None, core_minutes: float | None = None) -> Budget | RaceBudget:
    """A budget by name, with another amount if one is given; ``ConfigError`` if it cannot be used.

    Args:
        name: one of ``BUDGETS``.
        transitions: of a run; not of a race.
        core_minutes: for an environment, of a race.
    """
    if name not in BUDGETS:
        raise ConfigError(f"budget must be one of {', '.join(BUDGETS)}, got {name!r}")
    if transitions is not None and transitions < 1:
        raise ConfigError(f"transitions must be at least 1, got {transitions}")
    if core_minutes is not None and not 0 < core_minutes < math.inf:
        raise ConfigError(f"core minutes must be above 0, got {core_minutes}")
    budget = BUDGETS[name]
    if isinstance(budget, RaceBudget):
        if transitions is not None:
            raise ConfigError("a race is given time, not transitions: core minutes for each environment")
        return budget if core_minutes is None else replace(budget, core_minutes=core_minutes)
    if core_minutes is not None:
        raise ConfigError(f"core minutes are of the budget race; {name} counts transitions")
    return budget if transitions is None else replace(budget, transitions=transitions)
