"""Families of tasks whose best policies and whose returns of any policy are known exactly.

Shapes: N tasks, S states, A actions, K successors of a state and an action, D observation slots.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch

NUM_TASKS = 160

_TOLERANCE = 1e-9  # of values; actions that are closer than that are equally good
_DISCOUNT = 0.9
_STATES, _ACTIONS, _SUCCESSORS = 64, 8, 4  # of a random process
_SIDE, _WALLS, _SLIP = 14, 0.12, 0.1  # of a gridworld
_MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


@dataclass(frozen=True, eq=False)
class Tasks:
    """Markov decision processes with the same states and actions. An episode starts in any state and never ends.

    Attributes:
        observations: slots of each state, whole numbers from 0, int64 of shape (S, D).
        symbols: how many values each of these slots has.
        successors: states that may follow, int64 of shape (N, S, A, K).
        probabilities: of these, float64 of shape (N, S, A, K).
        rewards: expected reward, float64 of shape (N, S, A).
        arrivals: what reward arriving in each state brings, float64 of shape (N, S), where it depends on that only.
        discount: of the return.
    """

    observations: torch.Tensor
    symbols: tuple[int, ...]
    successors: torch.Tensor
    probabilities: torch.Tensor
    rewards: torch.Tensor
    arrivals: torch.Tensor | None = None
    discount: float = _DISCOUNT

    @property
    def num_states(self) -> int:
        """S."""
        return self.rewards.shape[1]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.rewards.shape[2]

    @cached_property
    def action_values(self) -> torch.Tensor:
        """Q of the best policy, float64 of shape (N, S, A), by value iteration."""
        values_NSA = self.rewards
        while True:
            best_NS = values_NSA.amax(-1)
            improved_NSA = self.rewards + self.discount * self._expected(best_NS)
            # The error left is at most the last change times discount / (1 - discount).
            if (improved_NSA - values_NSA).abs().max() < _TOLERANCE * (1 - self.discount) / 10:
                return improved_NSA
            values_NSA = improved_NSA

    @cached_property
    def labels(self) -> torch.Tensor:
        """The best action, the first of those that are equally good, int64 of shape (N, S)."""
        values_NSA = self.action_values
        return (values_NSA >= values_NSA.amax(-1, keepdim=True) - _TOLERANCE).int().argmax(-1)

    def returns(self, policy_NSA: torch.Tensor) -> torch.Tensor:
        """The expected discounted return of a policy (probabilities of actions) from a uniform start, of shape (N,)."""
        policy_NSA = policy_NSA.double()
        moves_NSZ = torch.zeros(len(policy_NSA), self.num_states, self.num_states, dtype=torch.float64)
        moves_NSZ.scatter_add_(2, self.successors.flatten(2), (policy_NSA[..., None] * self.probabilities).flatten(2))
        rewards_NS = (policy_NSA * self.rewards).sum(-1)
        system_NSZ = torch.eye(self.num_states, dtype=torch.float64) - self.discount * moves_NSZ
        return torch.linalg.solve(system_NSZ, rewards_NS).mean(-1)

    @cached_property
    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns of the uniform and of the best policy, of shape (N,)."""
        uniform_NSA = torch.full_like(self.rewards, 1 / self.num_actions)
        return self.returns(uniform_NSA), self.returns(_one_hot(self.labels, self.num_actions))

    def scores(self, actions_NS: torch.Tensor) -> torch.Tensor:
        """Of a deterministic policy: 0 is the return of the uniform policy and 100 that of the best one, of shape (N,)."""
        random_N, best_N = self.bounds
        return 100 * (self.returns(_one_hot(actions_NS, self.num_actions)) - random_N) / (best_N - random_N)

    def _expected(self, values_NS: torch.Tensor) -> torch.Tensor:
        """The expected value of the next state, (N, S, A)."""
        found = values_NS.gather(1, self.successors.flatten(1)).view_as(self.successors)
        return (found * self.probabilities).sum(-1)


def _one_hot(actions_NS: torch.Tensor, num_actions: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(actions_NS, num_actions).double()


def random_processes(seed: int = 0) -> Tasks:
    """Processes that have nothing in common: random successors, probabilities and rewards."""
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_TASKS, _STATES, _ACTIONS)
    successors = torch.randint(_STATES, (*shape, _SUCCESSORS), generator=generator)
    weights = torch.rand(*shape, _SUCCESSORS, generator=generator, dtype=torch.float64)
    rewards = torch.randn(*shape, generator=generator, dtype=torch.float64)
    observations = torch.arange(_STATES).unsqueeze(1)
    return Tasks(observations, (_STATES,), successors, weights / weights.sum(-1, keepdim=True), rewards)


def gridworlds(seed: int = 0) -> Tasks:
    """One floor with walls, and a goal for each task: the reward is minus the distance to it, as a share of the longest.

    A move takes another direction with a probability of 0.1 in all; a move into a wall stays. Tasks differ by the goal only.
    """
    generator = torch.Generator().manual_seed(seed)
    cells = _floor(generator)
    neighbours_SA = _neighbours(cells)
    others = neighbours_SA[:, None].expand(-1, len(_MOVES), -1)  # a move may turn into any
    chances_AK = torch.full((len(_MOVES), len(_MOVES)), _SLIP / (len(_MOVES) - 1), dtype=torch.float64)
    chances_AK.fill_diagonal_(1 - _SLIP)
    distances_SS = _distances(neighbours_SA)
    goals = torch.randperm(len(cells), generator=generator)[:NUM_TASKS]
    arrivals_NS = -distances_SS[goals] / distances_SS.max()
    successors = others.expand(NUM_TASKS, -1, -1, -1)
    rewards_NSA = (arrivals_NS.gather(1, successors.flatten(1)).view_as(successors) * chances_AK).sum(-1)
    return Tasks(cells, (_SIDE, _SIDE), successors, chances_AK.expand_as(successors), rewards_NSA, arrivals_NS)


FAMILIES = {"processes": random_processes, "gridworlds": gridworlds, "hidden": gridworlds}
"""``hidden``: gridworlds whose observation does not say which task it is; rewards in the context do."""


def _floor(generator: torch.Generator) -> torch.Tensor:
    """Row and column of all places that can be reached from the largest part of a floor with random walls."""
    free = torch.rand(_SIDE, _SIDE, generator=generator) >= _WALLS
    cells = free.nonzero()
    distances_SS = _distances(_neighbours(cells))
    reached = distances_SS.isfinite()
    cells = cells[reached[reached.sum(1).argmax()]]
    assert len(cells) >= NUM_TASKS
    return cells


def _neighbours(cells: torch.Tensor) -> torch.Tensor:
    """Where each move leads from each place, as numbers of places, (S, A)."""
    numbers = torch.full((_SIDE + 2, _SIDE + 2), -1)
    rows, columns = (cells + 1).unbind(1)
    numbers[rows, columns] = torch.arange(len(cells))
    found = torch.stack([numbers[rows + down, columns + right] for down, right in _MOVES], 1)
    return torch.where(found < 0, torch.arange(len(cells)).unsqueeze(1), found)


def _distances(neighbours_SA: torch.Tensor) -> torch.Tensor:
    """Moves from each place to each other one, float64 of shape (S, S); infinite where there is no way."""
    size = len(neighbours_SA)
    distances_SS = torch.full((size, size), math.inf, dtype=torch.float64).fill_diagonal_(0)
    while True:
        shorter_SS = torch.minimum(distances_SS, distances_SS[neighbours_SA].amin(1) + 1)
        if torch.equal(shorter_SS, distances_SS):
            return distances_SS
        distances_SS = shorter_SS
