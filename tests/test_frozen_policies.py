"""A policy that does not change does not improve, however long its episodes are; one that learns does."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scipy import stats

from conftest import CARTPOLE
from ldm_hf.dataset_builder.reference.candidates import Candidate
from ldm_hf.dataset_builder.reference.curation import unfit
from ldm_hf.dataset_builder.reference.policy import train_policy
from ldm_hf.dataset_builder.reference.recorder import Recorder
from ldm_hf.dataset_builder.reference.request import RunRequest
from ldm_hf.dataset_builder.reference.run import train_curve
from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
from ldm_hf.env_registry.registry import make_vec

MOST = 0.07
"""Share of frozen policies that may be called improved.

Welch's t-test has a level of 5 %. Of rewards of 1 it is 6 to 6.5 %: the last episodes to begin are those that the end of the
training falls into, and it falls into long ones more often.
"""

NUM_ENVS = (1, 8, 16)
SOME = [pytest.param(1, marks=pytest.mark.long), 8, 16]  # one environment at a time is the slowest to play


class Chance(gymnasium.vector.VectorEnv):
    """Episodes that end at every step with a probability that the action chooses, 1 in 3 or 1 in 10."""

    single_observation_space = spaces.Box(-1, 1, (1,))
    single_action_space = spaces.Discrete(2)
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.observations = np.zeros((num_envs, 1), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observations, {}

    def step(self, actions):
        ended = self.np_random.random(self.num_envs) < np.where(actions, 1 / 3, 1 / 10)
        return self.observations, np.ones(self.num_envs), ended, np.zeros(self.num_envs, bool), {}


class Rewards(gymnasium.vector.VectorWrapper):
    """Other rewards in the same episodes."""

    def __init__(self, env, rewards):
        super().__init__(env)
        self.rewards = rewards

    def step(self, actions):
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        return observations, self.rewards(rewards, terminated | truncated), terminated, truncated, info


def improved(envs, act, transitions: int, limit: int, seed: int) -> list[bool]:
    """Whether a frozen policy is called improved by rewards of 1, of -1, and of 1 at the end of 30 % of episodes."""
    generator, number = np.random.default_rng(seed), envs.num_envs
    steps = transitions // number
    plus = Recorder(envs, steps, limit)
    minus = Recorder(Rewards(plus, lambda rewards, _: -rewards), steps, limit)
    sparse = Rewards(minus, lambda _, over: (over & (generator.random(number) < 0.3)).astype(float))
    recorders = [plus, minus, Recorder(sparse, steps, limit)]
    observations, _ = recorders[-1].reset(seed=seed)
    for _ in range(steps):
        observations, *_ = recorders[-1].step(act(observations, generator))
    for recorder in recorders:
        recorder.end_training()
    while recorders[-1].is_recording:
        observations, *_ = recorders[-1].step(act(observations, generator))
    return [unfit(recorder.curve(), None) is None for recorder in recorders]


def most(runs: int) -> float:
    """The share that ``MOST`` and chance together exceed in one of a thousand samples of this size."""
    return stats.binom.ppf(0.999, runs, MOST) / runs


def shares(num_envs: int, runs: int) -> np.ndarray:
    """Of runs of about 130 episodes, those that are called improved by each kind of rewards."""

    def act(observations, generator):
        return generator.integers(0, 2, len(observations))

    return np.mean([improved(Chance(num_envs), act, 600, 10**6, seed) for seed in range(runs)], 0)


@pytest.mark.parametrize("num_envs", NUM_ENVS)
def test_a_frozen_policy_is_not_called_improved(num_envs):
    found = shares(num_envs, runs := 150)
    assert (found <= most(runs)).all(), found


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", SOME)
def test_few_of_many_frozen_policies_are_called_improved(num_envs):
    found = shares(num_envs, 3000)
    assert (found <= MOST).all(), found


def half_random(observations, generator):
    """A hand-written policy of CartPole, with 55 % random actions."""
    falls_right = observations[:, 2] + observations[:, 3] > 0
    random = generator.random(len(observations)) < 0.55
    return np.where(random, generator.integers(0, 2, len(observations)), falls_right.astype(int))


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", SOME)
def test_a_frozen_policy_of_cartpole_is_not_called_improved(num_envs):
    runs = 150
    found = np.mean(
        [
            improved(make_vec(CARTPOLE, num_envs, autoreset_mode="SameStep"), half_random, 15_000, 500, seed)
            for seed in range(runs)
        ],
        0,
    )
    assert (found <= most(runs)).all(), found


class Corridor(gymnasium.Env):
    """Ten cells, each step costs 1, the goal is at the end; it is given up after 100 steps."""

    observation_space = spaces.Box(0, 1, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.cell, self.steps = max(0, self.cell + (1 if action else -1)), self.steps + 1
        return np.full(1, self.cell / 10, np.float32), -1.0, self.cell == 10, self.steps == 100, {}


def test_a_learner_whose_rewards_are_negative_is_called_improved():
    """Its first episodes are the long ones."""
    num_envs = 8
    recorder = Recorder(
        SyncVectorEnv([Corridor] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP), 6144 // num_envs, 100
    )
    candidate = Candidate("PPO", {"n_steps": 512 // num_envs, "learning_rate": 1e-3}, num_envs)
    train_policy(Sb3VecEnv(recorder), candidate, timesteps=6144, seed=0, progress=lambda _: None, recorder=recorder)
    curve = recorder.curve()
    assert unfit(curve, None) is None and curve.last.mean > -20 > -30 > curve.first.mean


def test_a_learner_of_cartpole_is_called_improved():
    candidate = Candidate("PPO", {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "learning_rate": 1e-3}, 8)
    curve = train_curve(RunRequest(CARTPOLE, candidate, 12_288, 0))
    assert unfit(curve, None) is None and curve.last.mean > 100 > 50 > curve.first.mean


@pytest.mark.slow
def test_a_learner_of_acrobot_is_called_improved():
    candidate = Candidate("PPO", {"n_steps": 256, "gae_lambda": 0.94, "ent_coef": 0.0}, 16, normalize=True)
    curve = train_curve(RunRequest("gymnasium/Acrobot-v1", candidate, 100_000, 0))
    assert unfit(curve, None) is None and curve.last.mean > -150 > -400 > curve.first.mean
