"""How much is rolled out (paper section 5.1), and what rollouts give."""

from dataclasses import dataclass, field

from ldm_hf.env_registry.remote.worker_batch import STEP_TIMEOUT
from ldm_hf.errors import LDMError

EPISODES = 10
ROLLOUTS = 2

EVALUATION_SEED = 1_000_000_000
"""First seed of evaluation; training and reference scoring stay far below, so no evaluated start was trained on."""


@dataclass(frozen=True)
class Protocol:
    """How much is rolled out. Rollout ``r`` begins with the seed ``EVALUATION_SEED + 1000 x seed + r``.

    Attributes:
        episodes: of each rollout.
        rollouts: of each environment.
        seed: of the environments.
        step_timeout: seconds that a step of an isolated environment may take; it has failed after that.
    """

    episodes: int = EPISODES
    rollouts: int = ROLLOUTS
    seed: int = 0
    step_timeout: float = STEP_TIMEOUT

    def first_seed(self, rollout: int) -> int:
        """The seed of the first reset of a rollout; the environment's own randomness continues from there."""
        return EVALUATION_SEED + 1000 * self.seed + rollout


@dataclass
class RolloutResult:
    """Returns and lengths of the episodes of each rollout, in order; why there are no more, where it failed.

    ``successes`` says of each whether it succeeded; it is empty where the environment does not say.
    """

    returns: list[list[float]] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    failure: LDMError | None = None
    successes: list[list[bool]] = field(default_factory=list)

    @property
    def mean_return(self) -> float:
        """Mean over all episodes of all rollouts."""
        every = [value for rollout in self.returns for value in rollout]
        return sum(every) / len(every)
