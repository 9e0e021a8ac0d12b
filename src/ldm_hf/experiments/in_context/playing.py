"""How a model acts on held-out tasks: with its context kept or cleared between episodes, by sampled or greedy actions."""

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np

from ldm_hf.experiments.in_context.tasks import Bandit, TaskFamily
from ldm_hf.modeling import LDMModel, LDMProcessor

EXPLORATION = 3.0
"""Temperature of the way that explores: on the goals that Dark Room is trained on, 2 to 5 do the same."""


@dataclass(frozen=True)
class Mode:
    """How a model acts.

    Attributes:
        kept: whether the context is kept across the episodes of a task, or cleared before each.
        sampled: of the episodes of a task, in how many actions are sampled; from then on they are greedy.
        exploration: temperature at which they are sampled until two rewards differ; 1 afterwards. None is 1 throughout.
    """

    kept: bool
    sampled: int
    exploration: float | None = None


def modes(episodes: int) -> dict[str, Mode]:
    """The ways that are compared. The last two look around first, and then rely on what they have seen."""
    return {
        "kept, sampled": Mode(True, episodes),
        "kept, greedy": Mode(True, 0),
        "cleared, sampled": Mode(False, episodes),
        "cleared, greedy": Mode(False, 0),
        "kept, sampled then greedy": Mode(True, episodes // 2),
        "kept, exploring": Mode(True, episodes, EXPLORATION),
    }


def play(
    model: LDMModel, processor: LDMProcessor, family: TaskFamily, episodes: int, mode: Mode, seed: int = 0
) -> np.ndarray:
    """Returns of shape (B, episodes) in the B tasks of a family; its environments are reset with ``seed``."""
    spaces = [_Spaces(family)] * family.num_envs
    policy = model.policy(processor, spaces, seed=seed)
    observations, _ = family.reset(seed=seed)
    outcome: tuple[np.ndarray, ...] = ()
    totals = np.zeros((episodes, family.num_envs))
    for episode in range(episodes):
        if episode and not mode.kept:
            policy, outcome = model.policy(processor, spaces, seed=seed + episode), ()
        sampling = episode < mode.sampled
        policy.temperature, policy.exploration_temperature = (1.0, mode.exploration) if sampling else (0.0, None)
        for _ in range(family.episode_length):
            actions = policy.act(list(observations), *map(np.ndarray.tolist, outcome))
            observations, *brought, _ = family.step(np.stack(actions))
            outcome = tuple(brought)
            totals[episode] += brought[0]
    return totals.T


@dataclass(frozen=True)
class _Spaces:
    """A task, as a policy asks for it."""

    family: TaskFamily

    @property
    def observation_space(self) -> gymnasium.Space:
        return self.family.single_observation_space

    @property
    def action_space(self) -> gymnasium.Space:
        return self.family.single_action_space


def thompson(bandits: Bandit, rng: np.random.Generator) -> Callable[[np.ndarray | None], np.ndarray]:
    """Thompson sampling that knows the noise: normal posteriors, from the mean and variance of a uniform prior."""
    number = bandits.num_envs
    precision = np.full((number, bandits.arms), 12.0)
    weighted = 0.5 * precision
    pulled = np.zeros(number, np.int64)

    def act(rewards: np.ndarray | None) -> np.ndarray:
        nonlocal pulled
        rows = np.arange(number)
        if rewards is not None:
            precision[rows, pulled] += bandits.noise**-2
            weighted[rows, pulled] += rewards * bandits.noise**-2
        pulled = (weighted / precision + rng.standard_normal(precision.shape) / np.sqrt(precision)).argmax(1)
        return pulled

    return act


def upper_confidence(bandits: Bandit, rng: np.random.Generator) -> Callable[[np.ndarray | None], np.ndarray]:
    """UCB1 (Auer et al. 2002), its bonus scaled by the noise: each arm once, in random order, then the highest bound."""
    number = bandits.num_envs
    counts, sums = np.zeros((2, number, bandits.arms))
    order = rng.permuted(np.tile(np.arange(bandits.arms), (number, 1)), axis=1)
    pulled = np.zeros(number, np.int64)

    def act(rewards: np.ndarray | None) -> np.ndarray:
        nonlocal pulled
        rows, done = np.arange(number), int(counts[0].sum())
        if rewards is not None:
            counts[rows, pulled] += 1
            sums[rows, pulled] += rewards
            done += 1
        if done < bandits.arms:
            pulled = order[:, done]
        else:
            pulled = (sums / counts + bandits.noise * np.sqrt(2 * np.log(done) / counts)).argmax(1)
        return pulled

    return act


BANDIT_BASELINES = {"Thompson": thompson, "UCB": upper_confidence}
"""What a statistician would do, by name."""


def play_bandits(bandits: Bandit, episodes: int, name: str, seed: int = 0) -> np.ndarray:
    """Returns of a baseline, of shape (B, episodes)."""
    act = BANDIT_BASELINES[name](bandits, np.random.default_rng(seed))
    bandits.reset(seed=seed)
    rewards: list[np.ndarray] = []
    for _ in range(episodes * bandits.episode_length):
        rewards.append(bandits.step(act(rewards[-1] if rewards else None))[1])
    return np.array(rewards, np.float64).reshape(episodes, bandits.episode_length, -1).sum(1).T
