"""The short way to act: what ``ldm_hf.load`` gives, in the habit of Stable-Baselines3, and the typed front door."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy

import ldm_hf
from ldm_hf.errors import CheckpointError, UnsupportedSpaceError
from ldm_hf.modeling import LDMPolicy
from test_pretrained import PRETRAINED

CARTPOLE = "gymnasium/CartPole-v1"


@pytest.fixture(scope="module")
def agent():
    return ldm_hf.load(PRETRAINED / "ldm-mini")


def test_an_agent_plays_a_registered_environment(agent, tmp_path):
    played = agent.play(CARTPOLE, episodes=1, seed=3, video=tmp_path / "cartpole.gif")
    assert played.returns == [[500.0]] and played.mean_return == 500
    assert (tmp_path / "cartpole.gif").stat().st_size > 1000
    with pytest.raises(ldm_hf.errors.UnknownEnvironmentError, match="did you mean gymnasium/CartPole-v1"):
        agent.play("gymnasium/CartPol-v1")


def test_predict_acts_as_a_policy_that_is_told_what_happened(agent):
    """The same actions as by ``LDMPolicy``, over an end of an episode and a reset in the middle of one."""
    env = agent.set_env(gymnasium.make("CartPole-v1", max_episode_steps=6))
    other = gymnasium.make("CartPole-v1", max_episode_steps=6)
    policy = LDMPolicy(agent.model, agent.processor, [other])
    outcome = ()
    for seed, steps in ((0, 6), (1, 4), (2, 6)):
        seen, _ = env.reset(seed=seed)
        expected, _ = other.reset(seed=seed)
        for _ in range(steps):
            np.testing.assert_array_equal(seen, expected)
            action, state = agent.predict(seen)
            assert state is None and action == policy.act([expected], *outcome)[0]
            seen, *_ = env.step(action)
            expected, reward, terminated, truncated, _ = other.step(action)
            outcome = [reward], [terminated], [truncated]
        outcome = outcome[0], [False], [True]  # the limit of six steps, or the reset after four
    assert agent.get_env() is env


def test_stable_baselines3_evaluates_an_agent(agent):
    env = agent.set_env(gymnasium.make("CartPole-v1", max_episode_steps=40))
    returns, lengths = evaluate_policy(_Batched(agent), env, 2, return_episode_rewards=True, warn=False)
    assert returns == [40, 40] and lengths == [40, 40]


def test_drawn_actions_differ_from_the_most_likely(agent):
    env = agent.set_env(gymnasium.make("MountainCar-v0"))
    seen, _ = env.reset(seed=0)
    drawn = []
    for _ in range(30):
        action, _ = agent.predict(seen, deterministic=False)
        drawn.append(action)
        seen, *_ = env.step(action)
    assert len(set(drawn)) > 1


def test_what_cannot_be_predicted_is_said(agent):
    fresh = ldm_hf.Agent(agent.model, agent.processor)
    with pytest.raises(RuntimeError, match="call set_env before predict"):
        fresh.predict(np.zeros(4, np.float32))
    env = fresh.set_env(gymnasium.make("CartPole-v1"))
    seen, _ = env.reset(seed=0)
    fresh.predict(seen)
    with pytest.raises(RuntimeError, match="before the environment that set_env gave was stepped"):
        fresh.predict(seen)
    with pytest.raises(UnsupportedSpaceError):
        fresh.set_env(Wide())


@pytest.mark.parametrize("name", ["/nowhere", "nothing", "tests/nothing", "./nothing"])
def test_a_folder_that_is_not_there_is_said_without_asking_the_hub(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: pytest.fail("the Hub was asked"))
    with pytest.raises(CheckpointError, match="no such folder; a model of the Hub is named"):
        ldm_hf.load(name)


def test_the_door_is_clean():
    assert dir(ldm_hf) == sorted(["__version__", *ldm_hf.__all__])
    assert all(getattr(ldm_hf, name).__module__.startswith("ldm_hf.") for name in ldm_hf.__all__)


USER = """
import gymnasium

import ldm_hf

agent = ldm_hf.load("pretrained/ldm-mini")
print(agent.play("gymnasium/CartPole-v1", episodes=1).mean_return)
env: gymnasium.Env = ldm_hf.make("gymnasium/CartPole-v1")
watched = agent.set_env(env)
observation, info = watched.reset(seed=0)
action, state = agent.predict(observation)
config = ldm_hf.TrainingConfig(data="runs/data", output_dir="runs/model", max_steps=10)
print(ldm_hf.train(config), ldm_hf.build(["gymnasium/CartPole-v1"]), ldm_hf.publish, ldm_hf.evaluate, ldm_hf.finetune)
"""


@pytest.mark.slow
def test_a_strict_user_s_file_type_checks(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        str(tmp_path / "cache"),
        str(tmp_path / "user.py"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


class _Batched:
    """Stable-Baselines3 gives and takes batches, of one here."""

    def __init__(self, agent):
        self._agent = agent

    def predict(self, observations, **options):
        action, state = self._agent.predict(observations[0], **options)
        return np.array([action]), state


class Wide(gymnasium.Env):
    """More numbers than a model reads."""

    observation_space = gymnasium.spaces.Box(-1, 1, (300,))
    action_space = gymnasium.spaces.Discrete(2)
