"""How long candidates race on an environment, and which of them can: their costs by measured rates."""

from collections.abc import Mapping
from dataclasses import dataclass

from ldm_hf.dataset_builder.build.costs import has_image, run_seconds
from ldm_hf.dataset_builder.build.race.race import FIELD, ROUNDS, core_seconds, first_seconds
from ldm_hf.dataset_builder.build.race.zoo import tuned
from ldm_hf.dataset_builder.reference.candidates import OFF_POLICY, Candidate
from ldm_hf.env_registry.spec import EnvironmentSpec

_FIRST_UPDATES = 2.0  # times what its first update needs that a candidate's first slice has at least
_PATIENCE = 2.0  # slices of the first round that a candidate may need until it learns for the first time


@dataclass(frozen=True)
class RaceBudget:
    """How much is trained in races.

    Attributes:
        core_minutes: for each environment, of all its candidates.
        max_environments: of a library.
        tuned: whether candidates that RL Zoo tuned for an environment race there.
    """

    core_minutes: float = 10.0
    max_environments: int = 250
    tuned: bool = True

    @property
    def seconds(self) -> float:
        """Of a race."""
        return 60 * self.core_minutes

    @property
    def least_seconds(self) -> float:
        """That a race lasts on however many cores: the last of its runs have one each."""
        return self.seconds / core_seconds(1.0, FIELD)

    def slice_seconds(self, number: int, field: int) -> float:
        """Time of a slice in a race of ``field`` candidates; those after the race are as long as its last."""
        return first_seconds(field, self.seconds) * 2.0 ** min(number, ROUNDS - 1)

    def first_transitions(self, described: EnvironmentSpec, candidate: Candidate, field: int) -> int:
        """Transitions of a candidate's first slice, by measured costs; a few updates at least."""
        seconds, start = self.slice_seconds(0, field), _start_seconds(described, candidate)
        first = _first_update(described, candidate)
        if candidate.algorithm in OFF_POLICY:  # until it begins to learn, it costs what the environment costs
            return max(1, round(first + max(seconds - start, seconds / 2) / run_seconds(described, candidate, 1)))
        return max(1, round(seconds / run_seconds(described, candidate, 1)), round(_FIRST_UPDATES * first))

    def pool(self, environment: str, pool: Mapping[str, Candidate]) -> dict[str, Candidate]:
        """The candidates of an environment: those of a pool, and those that were tuned for it."""
        return {**(tuned(environment) if self.tuned else {}), **pool}

    def incompatible(self, described: EnvironmentSpec, pool: Mapping[str, Candidate]) -> dict[str, str]:
        """Why candidates of a pool do not race on an environment. Where all that fit are slow, the two fastest race."""
        found = {
            name: reason
            for name, candidate in pool.items()
            if (reason := candidate.incompatibility(described.observation_space, described.action_space)) is not None
        }
        slow = {
            name: reason
            for name, candidate in pool.items()
            if name not in found and (reason := self._too_slow(described, candidate)) is not None
        }
        if len(found) + len(slow) == len(pool):
            for name in sorted(slow, key=lambda name: _start_seconds(described, pool[name]))[:2]:
                del slow[name]
        return {**found, **slow}

    def _too_slow(self, described: EnvironmentSpec, candidate: Candidate) -> str | None:
        if candidate.algorithm == "TRPO" and has_image(described):
            return "its updates are slow on images"
        seconds = _start_seconds(described, candidate)
        if seconds > _PATIENCE * first_seconds(FIELD, self.seconds):
            return f"it takes {seconds:,.0f} seconds until it learns for the first time"
        return None


def _first_update(described: EnvironmentSpec, candidate: Candidate) -> int:
    """Transitions after which a candidate learns for the first time, at most."""
    if candidate.algorithm == "ARS":  # it compares policies, each by a whole episode
        return 2 * int(candidate.hyperparameters.get("n_delta", 8)) * described.max_episode_steps
    return candidate.first_update


def _start_seconds(described: EnvironmentSpec, candidate: Candidate) -> float:
    first = _first_update(described, candidate)
    if candidate.algorithm in OFF_POLICY:
        return first / max(described.steps_per_second, 1.0)
    return run_seconds(described, candidate, first)
