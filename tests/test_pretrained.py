"""The published model: what its folder, its report and the README say of it is so."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoModel, AutoProcessor
from transformers.dynamic_module_utils import custom_object_save

from ldm_hf.evaluation.report import Report
from ldm_hf.evaluation.rollout import evaluate_environment
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.training.config import renamed

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "pretrained/ldm-mini"
WEIGHTS = FOLDER / "model.safetensors"


@pytest.fixture(scope="module")
def report():
    return Report.load(FOLDER)


def test_it_is_small_and_the_one_that_was_evaluated(report):
    assert WEIGHTS.stat().st_size <= 20_000_000
    assert report.model["weights_sha256"] == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    with safe_open(WEIGHTS, "pt") as weights:
        assert {str(weights.get_tensor(name).dtype) for name in weights.keys()} == {"torch.float16"}  # noqa: SIM118


def test_it_was_trained_by_its_recipe_on_the_environments_that_were_fixed_before(report):
    recipe = renamed(yaml.safe_load((ROOT / "recipes/ldm-mini/train.yaml").read_text()))
    settings = renamed(yaml.safe_load((FOLDER / "training.yaml").read_text()))
    assert {name: settings[name] for name in recipe} == recipe
    listed = (ROOT / "docs/results/environments.md").read_text().splitlines()
    for role in ("trained on", "held out"):
        environments = sorted(line.split(" | ")[0].removeprefix("| ") for line in listed if f" | {role} | " in line)
        reported = [one.id for one in report.environments if (one.training == "trained on") == (role == "trained on")]
        assert reported == environments and len(environments) >= 10
    assert "--config recipes/ldm-mini/train.yaml" in (FOLDER / "make.sh").read_text()
    assert json.loads((FOLDER / "config.json").read_text())["environments"] == sorted(recipe["environments"])


def test_its_card_says_what_its_report_says(report):
    card = ModelCard.load(FOLDER / "README.md")
    trained = report.groups["training data"]["trained on"]
    assert trained.environments >= 32 and f"| trained on | {trained.environments} | {trained.scored} |" in card.text
    (metric,) = [one for one in card.data.eval_results if "(trained on)" in one.dataset_name]
    assert metric.metric_value == pytest.approx(trained.median, abs=1e-4)


def test_its_card_shows_words_and_results_before_long_lists():
    lines = (FOLDER / "README.md").read_text().splitlines()
    assert lines.index("# ldm-mini") < 50 and any("| trained on |" in line for line in lines[:70])
    assert 'agent = ldm_hf.load("pretrained/ldm-mini")' in lines and "<this folder>" not in "\n".join(lines)


def test_the_root_s_card_says_what_the_report_says(report):
    text = (ROOT / "model_card.md").read_text()
    for relation, summary in report.groups["training data"].items():
        row = f"| {relation} | {summary.environments} | {summary.reached[0]} | {summary.reached[1]} | {summary.median:.1%} |"
        assert row.replace("%", " %") in text


@pytest.mark.parametrize("folder", sorted(path.parent for path in FOLDER.parent.glob("*/config.json")), ids=str)
def test_the_code_with_the_weights_is_the_package_s(folder, tmp_path):
    for part in (LDMConfig, LDMModel, LDMProcessor):
        custom_object_save(part, tmp_path)
    expected, found = ({path.name: path.read_bytes() for path in each.glob("*.py")} for each in (tmp_path, folder))
    assert found == expected, "run `make remote-code`"


def test_a_clone_can_act_at_once():
    """The starts of the evaluation again: what the report says of CartPole is what comes out."""
    model, processor = AutoModel.from_pretrained(FOLDER), AutoProcessor.from_pretrained(FOLDER)
    result = evaluate_environment(model, processor, "gymnasium/CartPole-v1", episodes=1, rollouts=1)
    assert result.returns == [[500.0]]
