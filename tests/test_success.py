"""An environment's own signal of success, from a step's info to what counts as solved."""

import contextlib

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import ldm_hf.evaluation.trial as trial_module
from ldm_hf.dataset_builder.anchors.anchors import Anchors
from ldm_hf.dataset_builder.anchors.assessment import Assessment
from ldm_hf.dataset_builder.anchors.playing import play
from ldm_hf.dataset_builder.anchors.success import EpisodeSuccess
from ldm_hf.dataset_builder.curves import Sample
from ldm_hf.evaluation.known_references import ReferenceOfReport
from ldm_hf.evaluation.players import ModelPlayer
from ldm_hf.evaluation.protocol import Protocol, RolloutResult
from ldm_hf.evaluation.results import judge
from ldm_hf.evaluation.rollout import roll_out
from test_scores import run_info

RANDOM = Sample(-10.0, 1.0, 20)


class Reach(gymnasium.Env):
    """Episodes of three steps, whose infos are given for each step of each episode."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, *episodes):
        self.episodes, self.episode, self.step_number = episodes, -1, 0

    def reset(self, *, seed=None, options=None):
        self.episode, self.step_number = self.episode + 1, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        info = self.episodes[self.episode % len(self.episodes)][self.step_number]
        self.step_number += 1
        return np.zeros(1, np.float32), 1.0, False, self.step_number == 3, info


AT_END = [[{"is_success": now} for now in steps] for steps in ([0, 1, 0], [0, 0, 1.0])]
AT_ANY = [[{"success": now} for now in steps] for steps in ([0, 1, 0], [0, 0, 0])]
SILENT = [[{}, {"note": 1}, {}]]


@pytest.mark.parametrize(
    ("steps", "result"),
    [
        (AT_END[0], False),
        (AT_END[1], True),
        (AT_ANY[0], True),
        (AT_ANY[1], False),
        (SILENT[0], None),
        ([{"success": "a text"}, {"success": None}], None),
    ],
)
def test_when_an_episode_succeeds(steps, result):
    episode = EpisodeSuccess()
    for info in steps:
        episode.see(info)
    assert episode.result is result


@pytest.mark.parametrize(("episodes", "successes"), [(AT_END, [False, True]), (AT_ANY, [True, False]), (SILENT, [])])
def test_played_episodes_keep_what_the_environment_says(episodes, successes):
    """Of the episode that ended, not of the one that begins in the same step; one environment's, not the other's."""
    envs = SyncVectorEnv([lambda: Reach(*episodes), lambda: Reach(*SILENT)], autoreset_mode=AutoresetMode.SAME_STEP)
    with contextlib.closing(envs):
        both = play(envs, lambda *_: lambda observations: np.zeros(2, int), 4, 0)
        assert both.successes == []  # one of them says nothing
    envs = SyncVectorEnv([lambda: Reach(*episodes)], autoreset_mode=AutoresetMode.SAME_STEP)
    with contextlib.closing(envs):
        assert play(envs, lambda *_: lambda observations: np.zeros(1, int), 2, 0).successes == successes


def test_nine_of_ten_successes_solve_whatever_the_return_is():
    anchors = Anchors("lib/Env-v0", RANDOM, RANDOM)
    assert anchors.solved(-100.0) is None
    assert [anchors.solved(-100.0, [True] * good + [False] * (10 - good)) for good in (8, 9, 10)] == [False, True, True]


def test_successes_are_kept_with_the_reference_and_the_model():
    envs = SyncVectorEnv([lambda: Reach(*AT_END)], autoreset_mode=AutoresetMode.SAME_STEP)
    with contextlib.closing(envs):
        episodes = play(envs, lambda *_: lambda observations: np.zeros(1, int), 2, 0)
    anchors = Anchors("lib/Env-v0", RANDOM, RANDOM)
    assessment = Assessment.of(episodes, anchors)
    assert Assessment.from_json(assessment.to_json()).successes == [False, True]
    old = assessment.to_json()
    del old["successes"]
    assert Assessment.from_json(old).successes == []
    told = [[True] * 5, [True] * 4 + [False]]
    result = judge(run_info(assessment=assessment), [[1.0] * 5] * 2, [[3] * 5] * 2, RANDOM, None, anchors, told)
    assert (result.successes, result.solved, result.reference_solved) == (told, True, False)
    # A report keeps them of the reference; other episodes of the model are judged by their own.
    again = ReferenceOfReport(result)
    worse = RolloutResult([[1.0] * 5] * 2, [[3] * 5] * 2, None, [[False] * 5] * 2)
    judged = again.judged(worse, Protocol(5, 2), "trained on")
    assert (judged.solved, judged.reference_solved, judged.successes) == (False, False, worse.successes)
    partly = RolloutResult([[1.0] * 5] * 2, [[3] * 5] * 2, None, [[True] * 5, [True]])
    assert again.judged(partly, Protocol(5, 2), "trained on").solved is None


def test_rollouts_of_a_model_keep_them(model, processor, monkeypatch):
    made = {"lib/Says-v0": [Reach(*AT_END), Reach(*AT_END)], "lib/Silent-v0": [Reach(*SILENT), Reach(*SILENT)]}
    monkeypatch.setattr(trial_module, "make", lambda environment, **options: made[environment].pop())
    monkeypatch.setattr(trial_module, "is_isolated", lambda environment: False)
    says, silent = roll_out(ModelPlayer(model, processor), list(made), Protocol(2, 2))
    assert says.successes == [[False, True], [False, True]] and silent.successes == [[], []]
