"""Learning in context: the families of tasks, their histories, and how a model is played on tasks that it has not seen."""

import json

import numpy as np
import pytest

from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.experiments.in_context.histories import LIBRARY, expert_returns, random_returns, record_histories
from ldm_hf.experiments.in_context.playing import BANDIT_BASELINES, Mode, play, play_bandits
from ldm_hf.experiments.in_context.tasks import FAMILIES, Bandit, DarkRoom, HiddenGain, KeyToDoor, PermutedControl
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor


def test_the_expert_of_a_dark_room_takes_a_shortest_path():
    """It arrives after as many steps as rows and columns lie between; each step that ends at the goal gives 1, of 15."""
    family = DarkRoom(np.arange(49))
    distance = [abs(cell // 7 - 3) + abs(cell % 7 - 3) for cell in range(49)]
    expected = [15 if gap == 0 else 15 - gap + 1 for gap in distance]
    assert expert_returns(family, 2).tolist() == [[value, value] for value in expected]


def test_key_and_door_give_two():
    rng = np.random.default_rng(0)
    family = KeyToDoor(np.concatenate([KeyToDoor.draw(50, held_out, rng) for held_out in (False, True)]))
    assert (expert_returns(family, 2) == 2).all()
    assert random_returns(family, 2).mean() < 1


def test_a_door_without_its_key_gives_nothing():
    """The door lies one step to the right of the middle, the key one to the left."""
    family = KeyToDoor(np.array([[11, 13]]))
    family.reset(seed=0)
    right, left = 1, 3
    rewards = [float(family.step([action])[1][0]) for action in (right, left, left, right, right, left, right)]
    assert rewards == [0, 0, 1, 0, 1, 0, 0]


def test_permuted_actions_do_what_they_mean():
    """Action 0 means the move of number 1, one column to the right; the expert loses a step of distance with each action."""
    family = PermutedControl(np.array([[1, 0, 2, 3, 4]] * 20))
    before, _ = family.reset(seed=3)
    after, *_ = family.step(np.zeros(20, int))
    assert np.array_equal(after[:, 0], before[:, 0])
    assert np.array_equal(after[:, 1], np.minimum(before[:, 1] + 1, 6))
    distance = np.abs(after[:, :2] - after[:, 2:]).sum(1)
    for step in range(1, 11):
        _, rewards, *_ = family.step(family.expert(family.parameters))
        assert np.array_equal(-rewards, np.maximum(distance - step, 0))


def test_a_known_gain_reaches_its_goal_at_once():
    """A gain of -1 covers a distance of at most 1 in a step: the goal is reached by the second."""
    family = HiddenGain(np.full(64, -1.0))
    family.reset(seed=0)
    rewards = np.array([family.step(family.expert(family.parameters))[1] for _ in range(3)])
    assert (rewards[0] < -0.01).any() and np.abs(rewards[1:]).max() < 1e-6


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"bandit"}))
def test_held_out_tasks_are_not_trained_on(name):
    rng = np.random.default_rng(0)
    trained, held_out = (FAMILIES[name].draw(2000, kind, rng) for kind in (False, True))
    if name == "hidden-gain":
        sizes = np.abs(held_out)
        assert (((sizes > 0.4) & (sizes < 0.55)) | ((sizes > 0.9) & (sizes < 1.1))).all()
        near = np.abs(trained)
        assert not (((near > 0.4) & (near < 0.55)) | ((near > 0.9) & (near < 1.1))).any()
        return
    every = [{tuple(np.atleast_1d(one).tolist()) for one in tasks} for tasks in (trained, held_out)]
    assert not every[0] & every[1]
    assert len(every[1]) >= {"dark-room": 10, "key-to-door": 57, "permuted-control": 24}[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_histories_improve_and_are_labelled_by_the_expert(name, tmp_path):
    episodes = 8
    record_histories(tmp_path, name, 64, episodes)
    [dataset] = open_datasets(tmp_path, [f"{LIBRARY}/{name}"])
    length = episodes * FAMILIES[name].episode_length
    assert dataset.chunk_lengths.tolist() == [length] * 64  # a chunk is the whole history of one task
    chunks = [dataset.chunk(number) for number in range(64)]
    rewards = np.array([chunk.rewards for chunk in chunks]).reshape(64, episodes, -1).sum(2)
    assert rewards[:, -2:].mean() > rewards[:, :2].mean()
    done_right = np.array([np.isclose(chunk.actions, chunk.reference_actions).all(1) for chunk in chunks])
    half = length // 2
    assert done_right[:, half:].mean() > done_right[:, :half].mean()
    if name == "bandit":  # the best arm of a task is one arm
        assert all((chunk.reference_actions == chunk.reference_actions[0]).all() for chunk in chunks)


def test_a_history_that_is_there_is_kept(tmp_path):
    record_histories(tmp_path, "bandit", 8, 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("train-*.parquet")}
    record_histories(tmp_path, "bandit", 8, 2)
    assert before and {path: path.stat().st_mtime_ns for path in tmp_path.rglob("train-*.parquet")} == before


def test_statisticians_find_the_best_arm():
    bandits = Bandit(Bandit.draw(300, True, np.random.default_rng(0)))
    best = expert_returns(bandits, 20).mean()
    for name in BANDIT_BASELINES:
        by_episode = play_bandits(bandits, 20, name).mean(0)
        assert random_returns(bandits, 1).mean() < by_episode[0] < by_episode[-1]
        assert by_episode[-5:].mean() == pytest.approx(best, rel=0.05)


def test_a_cleared_context_knows_nothing_of_earlier_episodes():
    """In a bandit all episodes look alike at first: greedy actions on a cleared context are the same in each.

    The rewards within an episode differ, so its first action only is compared, by the family that counts it.
    """
    first: list[list[int]] = []

    class Counting(Bandit):
        def _act(self, actions):
            if self._steps == 0:
                first.append(actions.tolist())
            return super()._act(actions)

    model = LDMModel(LDMConfig.preset("nano", num_hidden_layers=1)).eval()
    processor = LDMProcessor()
    family = Counting(Bandit.draw(6, True, np.random.default_rng(0)))
    returns = play(model, processor, family, 3, Mode(kept=False, sampled=0))
    assert returns.shape == (6, 3)
    assert first[0] == first[1] == first[2]
    first.clear()
    again = play(model, processor, family, 3, Mode(kept=True, sampled=3), seed=5)
    assert np.array_equal(again, play(model, processor, family, 3, Mode(kept=True, sampled=3), seed=5))


def test_the_command_makes_everything_once(tmp_path, monkeypatch, capsys):
    from ldm_hf.experiments.in_context.__main__ import run

    options = {"histories": 32, "episodes": 2, "steps": 1, "tasks": 3, "seed": 0}
    run(tmp_path, ["bandit", "dark-room"], together=True, **options)
    shown = capsys.readouterr().out
    assert "dark-room, trained together" in shown and "Thompson" in shown
    found = json.loads((tmp_path / "together-0" / "bandit.json").read_text())
    assert np.array(found["kept, sampled"]).shape == (3, 2)
    weights = (tmp_path / "together-0" / "model" / "model.safetensors").stat().st_mtime_ns
    run(tmp_path, ["bandit", "dark-room"], together=True, **options)
    assert (tmp_path / "together-0" / "model" / "model.safetensors").stat().st_mtime_ns == weights
