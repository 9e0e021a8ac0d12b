"""Families of tasks whose parameter is hidden: what an agent sees does not say it, what its actions bring does.

Each family is a Gymnasium vector environment of B tasks with episodes of a fixed length; episodes of a task share the hidden
parameter. Training and held-out tasks have different parameters. Bandits are those of Decision-Pretrained Transformers (DPT,
arXiv 2306.14892, section 4), Dark Room and key-to-door those of algorithm distillation (arXiv 2210.14215, section 4),
smaller; control with permuted actions is DPT's idea of a changed action space.
"""

import itertools
from abc import abstractmethod
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

MOVES = np.array([(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)])
"""What the five actions of a grid do to a position."""


class TaskFamily(VectorEnv):
    """B tasks of a family, which are reset in the step that ends an episode.

    Args:
        parameters: hidden parameter of each task, of shape (B, ...), as ``draw`` gives them.

    Attributes:
        episode_length: steps of each episode.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # Gymnasium declares it so
    episode_length: int
    single_observation_space: gymnasium.Space
    single_action_space: gymnasium.Space

    def __init__(self, parameters: np.ndarray) -> None:
        self.num_envs, self.parameters, self._steps = len(parameters), parameters, 0
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @staticmethod
    @abstractmethod
    def draw(number: int, held_out: bool, rng: np.random.Generator) -> np.ndarray:
        """Parameters of some tasks: those that are trained on, or those that are not."""

    @abstractmethod
    def expert(self, parameters: np.ndarray) -> np.ndarray:
        """The best actions now, of shape (B, ...), by who takes ``parameters`` for the hidden ones."""

    @abstractmethod
    def _begin(self) -> None:
        """Start an episode of each task."""

    @abstractmethod
    def _observe(self) -> np.ndarray:
        """The observations now."""

    @abstractmethod
    def _act(self, actions: np.ndarray) -> np.ndarray:
        """Do actions; gives the rewards, of shape (B,)."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode of each task; a list of seeds is taken by its first."""
        self._random = np.random.default_rng(seed[0] if isinstance(seed, list) else seed)
        self._steps = 0
        self._begin()
        return self._observe(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Do one step of each task; every episode ends, truncated, after ``episode_length`` of them."""
        rewards = self._act(np.asarray(actions)).astype(np.float32)
        self._steps = (self._steps + 1) % self.episode_length
        over, info = np.full(self.num_envs, self._steps == 0), {}
        if self._steps == 0:
            final = np.empty(self.num_envs, object)
            final[:] = list(self._observe())
            info = {"final_obs": final, "_final_obs": over.copy()}
            self._begin()
        return self._observe(), rewards, np.zeros_like(over), over, info


class Bandit(TaskFamily):
    """Five arms, each with a hidden mean of its own between 0 and 1 and noise of 0.3; an episode is ten pulls."""

    episode_length, arms, noise = 10, 5, 0.3
    single_observation_space, single_action_space = Discrete(1), Discrete(5)

    @staticmethod
    def draw(number: int, held_out: bool, rng: np.random.Generator) -> np.ndarray:
        """Means of the arms; they are drawn for each task, so that none is met twice."""
        return rng.random((number, Bandit.arms))

    def expert(self, parameters: np.ndarray) -> np.ndarray:
        """The arm with the highest mean."""
        return parameters.argmax(1)

    def _begin(self) -> None:
        pass

    def _observe(self) -> np.ndarray:
        return np.zeros(self.num_envs, np.int64)

    def _act(self, actions: np.ndarray) -> np.ndarray:
        means = self.parameters[np.arange(self.num_envs), actions]
        return means + self.noise * self._random.standard_normal(self.num_envs)


class _Grid(TaskFamily):
    """A room of ``size`` x ``size`` cells that is entered in the middle; an agent sees its row and its column."""

    size: int

    def _begin(self) -> None:
        self._cells = np.full((self.num_envs, 2), self.size // 2)

    def _observe(self) -> np.ndarray:
        return self._cells.copy()

    def _numbers(self) -> np.ndarray:
        return self._cells[:, 0] * self.size + self._cells[:, 1]

    def _move(self, actions: np.ndarray) -> None:
        self._cells = np.clip(self._cells + MOVES[actions], 0, self.size - 1)

    def _towards(self, cells: np.ndarray) -> np.ndarray:
        """The actions of a shortest path, rows first."""
        gap = cells - self._cells
        by_column = np.where(gap[:, 1] > 0, 1, np.where(gap[:, 1] < 0, 3, 0))
        return np.where(gap[:, 0] > 0, 2, np.where(gap[:, 0] < 0, 4, by_column))

    @classmethod
    def _cell(cls, numbers: np.ndarray) -> np.ndarray:
        return np.stack([numbers // cls.size, numbers % cls.size], -1)


class DarkRoom(_Grid):
    """A cell of a dark room of 7 x 7 gives 1 in each step that ends in it; 10 of the 49 cells are held out."""

    size, episode_length = 7, 15
    single_observation_space, single_action_space = MultiDiscrete([7, 7]), Discrete(5)

    @staticmethod
    def draw(number: int, held_out: bool, rng: np.random.Generator) -> np.ndarray:
        """Goals, cell numbers of shape (B,)."""
        cells = np.random.default_rng(0).permutation(49)
        return rng.choice(cells[39:] if held_out else cells[:39], number)

    def expert(self, parameters: np.ndarray) -> np.ndarray:
        """A shortest path to the goal."""
        return self._towards(self._cell(parameters))

    def _act(self, actions: np.ndarray) -> np.ndarray:
        self._move(actions)
        return self._numbers() == self.parameters


class KeyToDoor(_Grid):
    """In a dark room of 5 x 5 a key gives 1, and then a door gives 1, once per episode; a tenth of the pairs is held out."""

    size, episode_length = 5, 16
    single_observation_space, single_action_space = MultiDiscrete([5, 5]), Discrete(5)

    @staticmethod
    def draw(number: int, held_out: bool, rng: np.random.Generator) -> np.ndarray:
        """Cells of the key and of the door, of shape (B, 2), never the same; the key is not where one enters."""
        pairs = np.array([(key, door) for key in range(25) for door in range(25) if key not in (door, 12)])
        order = np.random.default_rng(0).permutation(len(pairs))
        return pairs[rng.choice(order[:57] if held_out else order[57:], number)]

    def expert(self, parameters: np.ndarray) -> np.ndarray:
        """A shortest path to the key, then to the door, where it stays."""
        wanted = np.where(self._has_key, parameters[:, 1], parameters[:, 0])
        return self._towards(self._cell(wanted))

    def _begin(self) -> None:
        super()._begin()
        self._has_key, self._is_open = np.zeros((2, self.num_envs), bool)

    def _act(self, actions: np.ndarray) -> np.ndarray:
        self._move(actions)
        cells = self._numbers()
        takes = ~self._has_key & (cells == self.parameters[:, 0])
        opens = self._has_key & ~self._is_open & (cells == self.parameters[:, 1])
        self._has_key |= takes
        self._is_open |= opens
        return takes.astype(float) + opens


class PermutedControl(_Grid):
    """In a room of 7 x 7 a goal is seen, another in each episode, and the meanings of the five actions are permuted.

    Of 120 permutations 24 are held out. The reward is minus the distance to the goal, in steps.
    """

    size, episode_length = 7, 12
    single_observation_space, single_action_space = MultiDiscrete([7, 7, 7, 7]), Discrete(5)

    @staticmethod
    def draw(number: int, held_out: bool, rng: np.random.Generator) -> np.ndarray:
        """What each action means, of shape (B, 5)."""
        order = np.random.default_rng(0).permutation(120)
        chosen = rng.choice(order[96:] if held_out else order[:96], number)
        permutations = np.array(list(itertools.permutations(range(5))))
        return permutations[chosen]

    def expert(self, parameters: np.ndarray) -> np.ndarray:
        """The action that means a step of a shortest path to the goal."""
        return (parameters == self._towards(self._goals)[:, None]).argmax(1)

    def _begin(self) -> None:
        self._cells, self._goals = self._random.integers(self.size, size=(2, self.num_envs, 2))

    def _observe(self) -> np.ndarray:
        return np.concatenate([self._cells, self._goals], 1)

    def _act(self, actions: np.ndarray) -> np.ndarray:
        self._move(self.parameters[np.arange(self.num_envs), actions])
        return -np.abs(self._cells - self._goals).sum(1)


class HiddenGain(TaskFamily):
    """A cart on a rail moves by a force times a hidden gain, the inverse of its mass, either way; it is to reach a goal.

    Gains are 0.15 to 1.5 forwards or backwards; of these, 0.4 to 0.55 and 0.9 to 1.1 are held out. The reward is minus the
    distance to the goal.
    """

    episode_length = 8
    single_observation_space, single_action_space = Box(-1, 1, (2,), np.float32), Box(-1, 1, (1,), np.float32)

    @staticmethod
    def draw(number: int, held_out: bool, rng: np.random.Generator) -> np.ndarray:
        """Gains, of shape (B,)."""
        sizes = np.exp(rng.uniform(np.log(0.15), np.log(1.5), 40 * number + 200))
        kept = (sizes > 0.4) & (sizes < 0.55) | (sizes > 0.9) & (sizes < 1.1)
        return sizes[kept == held_out][:number] * rng.choice([-1, 1], number)

    def expert(self, parameters: np.ndarray) -> np.ndarray:
        """The force that reaches the goal, or as much of it as there is."""
        force = (self._goal - self._place) / parameters
        return np.clip(force, -1, 1).astype(np.float32)[:, None]

    def _begin(self) -> None:
        self._place, self._goal = self._random.uniform(-1, 1, (2, self.num_envs))

    def _observe(self) -> np.ndarray:
        return np.stack([self._place, self._goal], 1).astype(np.float32)

    def _act(self, actions: np.ndarray) -> np.ndarray:
        self._place = np.clip(self._place + self.parameters * actions[:, 0], -1, 1)
        return -np.abs(self._place - self._goal)


FAMILIES: dict[str, type[TaskFamily]] = {
    "bandit": Bandit,
    "dark-room": DarkRoom,
    "key-to-door": KeyToDoor,
    "permuted-control": PermutedControl,
    "hidden-gain": HiddenGain,
}
"""All families, by name."""


def held_out(name: str, number: int, seed: int) -> np.ndarray:
    """Parameters of the held-out tasks of a family that a model is played on."""
    return FAMILIES[name].draw(number, True, np.random.default_rng((seed, 1)))
