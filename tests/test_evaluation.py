"""Rollouts, scores, reports and cards."""

import json

import gymnasium
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from PIL import Image

import ldm_hf.evaluation.rollout as rollout_module
from conftest import CARTPOLE, CLIFF
from ldm_hf.dataset_builder.reader import open_datasets
from ldm_hf.errors import CheckpointError, DatasetFormatError, EnvironmentFailure
from ldm_hf.evaluation.evaluate import evaluate
from ldm_hf.evaluation.report import EnvironmentResult, Report, render_model_card
from ldm_hf.evaluation.rollout import EVALUATION_SEED, evaluate_environment
from ldm_hf.evaluation.scores import normalized_score, threshold_curve


def test_scores_by_hand():
    assert normalized_score(75, 50, 100) == 0.5
    assert normalized_score(-13, -334, -32) == pytest.approx(321 / 302)
    assert normalized_score(25, 50, 100) == -0.5
    assert normalized_score(1, 5, 5) is None and normalized_score(1, 5, 4) is None


def test_threshold_curve_counts_at_or_above():
    assert threshold_curve([0.8, 1.0, 0.1, None, -2], [0, 0.8, 0.81, 1, 1.2]).tolist() == [3, 2, 1, 1, 0]
    # (0.9 - 0.1) / (1.1 - 0.1) is 0.8 but for rounding.
    assert threshold_curve([normalized_score(0.9, 0.1, 1.1)], [0.8]).tolist() == [1]


class Diary(gymnasium.Env):
    """Episodes of known lengths and rewards, which remembers how it was treated."""

    observation_space = spaces.Discrete(100)
    action_space = spaces.Discrete(2)

    def __init__(self, lengths):
        self.lengths, self.seeds, self.episode, self.count, self.closed = lengths, [], -1, 0, False

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.episode, self.count = self.episode + 1, 0
        return 10 * self.episode, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.count += 1
        over = self.count == self.lengths[self.episode]
        return 10 * self.episode + self.count, self.episode + 1.0, over, False, {}

    def close(self):
        self.closed = True


def test_the_protocol(model, processor, monkeypatch):
    """Two rollouts of three episodes, of different lengths; the context is kept, only the first reset is seeded."""
    made = [Diary([2, 3, 1, 9]), Diary([1, 1, 5, 9])]
    waiting, told, seen = list(made), [], []
    monkeypatch.setattr(rollout_module, "make", lambda environment, render_mode: waiting.pop(0))

    class Watched(rollout_module.LDMPolicy):
        def act(self, observations, *outcome):
            seen.append((list(observations), *map(list, outcome)))
            return super().act(observations, *outcome)

    monkeypatch.setattr(rollout_module, "LDMPolicy", Watched)
    result = evaluate_environment(
        model, processor, "test/Diary-v0", episodes=3, seed=2, progress=lambda done, total: told.append((done, total))
    )
    assert result.lengths == [[2, 3, 1], [1, 1, 5]]
    assert result.returns == [[2, 6, 3], [1, 2, 15]]
    assert result.mean_return == 29 / 6
    assert [env.seeds[0] for env in made] == [EVALUATION_SEED + 2000, EVALUATION_SEED + 2001]
    assert all(seed is None for env in made for seed in env.seeds[1:]) and all(env.closed for env in made)
    assert told[-1] == (6, 6)
    # After its one step, the second environment shows the reset's observation with the end of the episode before.
    assert seen[0] == ([0, 0],)
    assert seen[1] == ([1, 10], [1.0, 1.0], [False, True], [False, False])
    assert seen[2] == ([10, 20], [1.0, 2.0], [True, True], [False, False])
    # The first one has finished after six steps, and the second goes on alone for one.
    assert [len(observations) for observations, *_ in seen] == [2, 2, 2, 2, 2, 2, 1]


def test_an_environment_that_breaks_is_named(model, processor, monkeypatch):
    class Broken(Diary):
        def step(self, action):
            raise RuntimeError("the simulation\nexploded")

    made = [Broken([1]), Broken([1])]
    waiting = list(made)
    monkeypatch.setattr(rollout_module, "make", lambda environment, render_mode: waiting.pop(0))
    with pytest.raises(EnvironmentFailure, match=r"test/Broken-v0 broke .*: the simulation exploded"):
        evaluate_environment(model, processor, "test/Broken-v0")
    assert all(env.closed for env in made)


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "model"
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def test_evaluation_writes_everything_and_repeats_nothing(folder, data, tmp_path, monkeypatch):
    references = open_datasets(data, [CARTPOLE, CLIFF])
    report = evaluate(folder, references, tmp_path, episodes=2, rollouts=2)
    written = json.loads((tmp_path / "report.json").read_text())
    assert [result["id"] for result in written["environments"]] == [CARTPOLE, CLIFF]
    first = written["environments"][0]
    info = references[0].info
    assert (first["first10"], first["last10"]) == (info.first10, info.last10)
    assert first["mean_return"] == np.mean(first["returns"])
    assert first["normalized_score"] == (first["mean_return"] - info.first10) / (info.last10 - info.first10)
    assert np.shape(first["returns"]) == (2, 2)
    assert Report.load(tmp_path / "report.json") == report
    with Image.open(tmp_path / "threshold_curve.png") as picture:
        assert min(picture.size) > 400

    def never(*arguments, **options):
        raise AssertionError("a finished environment was evaluated again")

    monkeypatch.setattr("ldm_hf.evaluation.evaluate.evaluate_environment", never)
    assert evaluate(folder, references, tmp_path, episodes=2, rollouts=2) == report
    with pytest.raises(AssertionError, match="evaluated again"):  # another protocol is another result
        evaluate(folder, references, tmp_path, episodes=3, rollouts=2)


def test_the_card_is_valid_and_complete():
    results = [
        EnvironmentResult.of("lib/Up-v0", [[9.0], [10.0]], 0.0, 10.0, 11.0),
        EnvironmentResult.of("lib/Flat-v0", [[1.0], [2.0]], 5.0, 5.0, 5.0),
    ]
    model = {"parameters": 1234567, "context_length": 64}
    report = Report(results, {"rollouts": 2, "episodes": 1}, model, {"steps": 9}, {"torch": "2"})
    card = render_model_card(report, "toy")
    _, header, body = card.split("---\n", 2)
    index = yaml.safe_load(header)["model-index"][0]
    values = {metric["type"]: metric["value"] for metric in index["results"][0]["metrics"]}
    assert index["name"] == "toy" and values == {"mean_return": 9.5, "normalized_score": 0.95}
    assert [metric["type"] for metric in index["results"][1]["metrics"]] == ["mean_return"]
    assert "| `lib/Up-v0` | 0.00 | 10.00 | 11.00 | 9.50 | 95.0 % |" in body and "not scored" in body
    assert (
        "1,234,567 parameters" in body and "50 % of the environments reach 80 %" in body and "| steps | `9` |" in body
    )


NO_REPORTS = [
    "",
    "[]",
    "{}",
    '{"format": 1}',
    '{"format": 9, "environments": []}',
    '{"format": 1, "environments": [{}]}',
]


@pytest.mark.parametrize("text", NO_REPORTS)
def test_other_files_are_no_reports(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(DatasetFormatError, match=str(path)):
        Report.load(path)


def test_other_folders_are_no_models(folder, data, tmp_path):
    with pytest.raises(CheckpointError, match="holds no model"):
        evaluate(tmp_path, [], tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="type 'bert'; it must be 'ldm'"):
        evaluate(tmp_path, [], tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        evaluate(tmp_path, [], tmp_path)
