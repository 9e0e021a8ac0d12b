"""The benchmark of worth: what it compares by, and every way to learn, once, on a small scale."""

import json
import subprocess
import sys

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from conftest import CARTPOLE
from ldm_hf.errors import ConfigError
from ldm_hf.evaluation.protocol import Protocol
from ldm_hf.experiments.worth import tasks, ways
from ldm_hf.experiments.worth.cloning import Cloner
from ldm_hf.experiments.worth.page import Scale, Score, compare, draw, page, read_scales, read_scores
from ldm_hf.experiments.worth.ways import AVERAGED, MLP, PRETRAINED, SB3_TIME, WAYS, ZERO_SHOT, Bench, Cell
from ldm_hf.modeling import LDMConfig
from ldm_hf.modeling.spaces_ldm import SlotLayout


@pytest.mark.parametrize("model", tasks.HELD_OUT)
def test_held_out_environments_are_held_out(model):
    trained = set(LDMConfig.from_pretrained(f"pretrained/{model}").environments)
    environments, lists = tasks.held_out(f"pretrained/{model}"), tasks.HELD_OUT[model]
    assert len(set(environments)) >= 9 and not trained & set(environments)
    libraries = {name.partition("/")[0] for name in trained}
    assert all(name.partition("/")[0] in libraries for name in lists.known)
    assert not any(name.partition("/")[0] in libraries for name in lists.unknown)
    assert not tasks.UNKNOWN & set(lists.known)  # pages mark them by name


def test_a_model_without_a_list_needs_environments():
    with pytest.raises(ConfigError, match="--environment"):
        tasks.held_out("somebody/their-model")


def score(*values: float) -> Score:
    return Score(np.array(values), 1.0, 10.0)


def test_intervals_by_hand():
    # 1, 2, 3: a standard deviation of 1, by the root of 3, by 4.303 (Student's t of two degrees of freedom, 97.5 %).
    assert score(1, 2, 3).half == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert score(1).half == float("inf") and not score(1).is_apart_from(score(100))
    assert score(1, 1.01, 0.99).is_apart_from(score(2, 2.01, 1.99))
    assert not score(1, 2, 3).is_apart_from(score(2, 3, 4))


def test_comparison_counts_environments():
    better, worse, noisy = score(1, 1.01, 0.99), score(0, 0.01, -0.01), score(0, 1, 0.6)
    scores = {
        ("a", 5): {"pretrained": better, "MLP": worse},
        ("b", 5): {"pretrained": worse, "MLP": better},
        ("c", 5): {"pretrained": better, "MLP": noisy},
        ("d", 5): {"pretrained": better},
        ("e", 1): {"pretrained": better, "MLP": worse},
    }
    assert compare(scores, 5, "pretrained", "MLP") == {
        "environments": 3,
        "above": 2,
        "apart above": 1,
        "apart below": 1,
    }


def test_scale_places_random_and_reference():
    scale = Scale(-10.0, 30.0, None)
    assert [scale.place(value) for value in (-10, 10, 30, 50)] == [0, 0.5, 1, 1.5]


def test_the_perceptron_reads_every_kind_of_slot():
    """Symbols, numbers and pixels in; symbols and numbers out, within their bounds."""
    space = Dict({"a": Discrete(3), "b": Box(-np.inf, np.inf, (2,)), "c": Box(0, 255, (8, 8, 3), np.uint8)})
    observation = SlotLayout.of(space)
    for action_space in (Box(-2, 4, (2,)), MultiDiscrete([3, 5])):
        action = SlotLayout.of(action_space, role="action")
        values = [space.sample() for _ in range(32)]
        flat = [observation.flatten(value) for value in values]
        slots, images = np.stack([slots for slots, _ in flat]), np.stack([image for _, image in flat])
        cloner = Cloner(observation, action, (slots, images), 0)
        features = cloner.features(slots, images)
        assert features.shape == (32, 3 + 2 + 3 * 16 * 16) and features.isfinite().all()
        assert features[:, 2:5].argmax(1).tolist() == [value["a"] for value in values]  # after the two numbers
        assert all(action_space.contains(acted) for acted in cloner.act(slots, images))


@pytest.fixture(scope="module")
def bench(model, processor, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("worth")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    settings = {"max_steps": 4, "train_batch_size": 4, "early_stopping_patience": 1, "validation_steps": 2}
    return Bench(str(folder / "model"), data, folder / "out", Protocol(2, 2), settings), folder / "out"


def test_every_way_to_learn(bench, data):
    made, output = bench
    found = {
        way: made.measure(Cell(CARTPOLE, 0 if way == ZERO_SHOT else 5, 0, way), seconds=2.0)
        for way in (*WAYS, ZERO_SHOT)
    }
    assert all(np.shape(one["returns"]) == (2, 2) for one in found.values())
    fed = {way: one["transitions"] for way, one in found.items() if not way.startswith("SB3") and way != ZERO_SHOT}
    assert len(set(fed.values())) == 1 and min(fed.values()) > 0  # all learn from the same
    assert found["SB3, same steps"]["transitions"] >= fed[MLP]  # to the end of a rollout
    assert found[SB3_TIME]["seconds"] < 30 and found[ZERO_SHOT]["transitions"] == 0
    assert len(list((output / "models").iterdir())) == 1
    made.close()
    assert not list((output / "models").iterdir())  # hundreds of models would fill a disk
    # Imitating a reference that keeps the pole up is not what an untrained network does.
    assert np.mean(found[MLP]["returns"]) > 2 * np.mean(found[ZERO_SHOT]["returns"])
    (output / "cells").mkdir()
    for one in found.values():
        for seed in (0, 1):
            path = output / "cells" / f"{Cell(CARTPOLE, one['episodes'], seed, one['way']).name}.json"
            path.write_text(json.dumps({**one, "seed": seed}))
    scales = read_scales(data, [CARTPOLE])
    scores = read_scores(output, scales)
    assert set(scores) == {(CARTPOLE, 0), (CARTPOLE, 5)} and set(scores[CARTPOLE, 5]) == set(WAYS)
    text = page(scores, scales, "ldm-x")
    assert "| 5 | pretrained | random weights | 1 |" in text and "## 5 episodes" in text


def test_the_model_that_was_just_fine_tuned_is_averaged_without_training_again(bench, monkeypatch):
    made, _ = bench
    made.measure(Cell(CARTPOLE, 5, 0, PRETRAINED))
    monkeypatch.setattr(ways, "finetune", None)
    assert np.shape(made.measure(Cell(CARTPOLE, 5, 0, AVERAGED))["returns"]) == (2, 2)
    made.close()


def test_the_average_can_be_asked_for_alone(data, tmp_path, model, processor):
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "ldm_hf.experiments.worth", "--data", str(data), "--output", str(tmp_path / "out")]
    command += ["--model", str(tmp_path / "model"), "--environment", CARTPOLE, "--episodes", "2", "--seeds", "1"]
    command += ["--way", AVERAGED, "--setting", '{"max_steps": 1}']
    subprocess.run(command, capture_output=True, text=True, check=True)
    (cell,) = (tmp_path / "out/cells").iterdir()
    assert cell.name == "gymnasium--CartPole-v1_pretrained-averaged_2_0.json"


def test_the_same_seed_learns_the_same(bench):
    made, _ = bench
    returns = [made.measure(Cell(CARTPOLE, 5, seed, MLP))["returns"] for seed in (0, 0, 1)]
    assert returns[0] == returns[1] != returns[2]


def test_the_command_makes_what_is_missing(data, tmp_path):
    command = [sys.executable, "-m", "ldm_hf.experiments.worth", "--data", str(data), "--output", str(tmp_path)]
    command += ["--environment", CARTPOLE, "--episodes", "2", "--seeds", "1", "--way", "MLP"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1/1 gymnasium--CartPole-v1_MLP_2_0" in done.stderr
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1/1" not in again.stderr


def test_the_figure_is_drawn(tmp_path):
    scores = {(tasks.held_out("ldm-mini")[0], 5): {"MLP": score(0.5, 0.6), "pretrained": score(0.7, 0.8)}}
    draw(scores, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 5000
