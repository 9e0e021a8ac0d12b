"""The published models: what their folders, their reports and the README say of them is so."""

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
PRETRAINED = ROOT / "pretrained"
MEGABYTES = {"ldm-base": 60, "ldm-mini": 20}
RECIPES = {"ldm-base": "train-4.yaml", "ldm-mini": "train.yaml"}


@pytest.fixture(scope="module", params=sorted(MEGABYTES))
def folder(request) -> Path:
    return PRETRAINED / request.param


@pytest.fixture(scope="module")
def report(folder) -> Report:
    return Report.load(folder)


def listed(name: str) -> dict[str, list[str]]:
    """The environments that were fixed before a model was trained, by whether it was to be trained on them."""
    if name == "ldm-base":
        recipe = yaml.safe_load((ROOT / "recipes/ldm-base/train.yaml").read_text())
        held_out = (ROOT / "recipes/ldm-base/held_out.txt").read_text().split()
        return {"trained on": sorted(recipe["environments"]), "held out": sorted(held_out)}
    lines = (ROOT / "docs/results/environments.md").read_text().splitlines()
    roles = ("trained on", "held out")
    return {role: sorted(line.split(" | ")[0][2:] for line in lines if f" | {role} | " in line) for role in roles}


def test_it_is_small_and_the_one_that_was_evaluated(folder, report):
    path = folder / "model.safetensors"
    assert path.stat().st_size <= MEGABYTES[folder.name] * 1_000_000
    assert report.model["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, "pt") as weights:
        assert {str(weights.get_tensor(name).dtype) for name in weights.keys()} == {"torch.float16"}  # noqa: SIM118


def test_it_was_trained_by_its_recipe_on_the_environments_that_were_fixed_before(folder, report):
    recipe = renamed(yaml.safe_load((ROOT / f"recipes/{folder.name}/{RECIPES[folder.name]}").read_text()))
    settings = renamed(yaml.safe_load((folder / "training.yaml").read_text()))
    assert {name: settings[name] for name in recipe} == recipe
    for role, environments in listed(folder.name).items():
        reported = [one.id for one in report.environments if (one.training == "trained on") == (role == "trained on")]
        assert reported == environments and len(environments) >= 8
    trained = listed(folder.name)["trained on"]
    assert sorted(recipe.get("environments") or recipe["weights"]) == trained
    assert json.loads((folder / "config.json").read_text())["environments"] == trained
    libraries = {name.partition("/")[0] for name in trained}
    assert folder.name != "ldm-base" or (len(trained) >= 120 and len(libraries) >= 30)


def test_its_card_says_what_its_report_says(folder, report):
    card = ModelCard.load(folder / "README.md")
    trained = report.groups["training data"]["trained on"]
    assert trained.environments >= 32 and f"| trained on | {trained.environments} | {trained.scored} |" in card.text
    (metric,) = [one for one in card.data.eval_results if "(trained on)" in one.dataset_name]
    assert metric.metric_value == pytest.approx(trained.median, abs=1e-4)


def test_its_card_shows_words_and_results_before_long_lists(folder):
    lines = (folder / "README.md").read_text().splitlines()
    assert lines.index(f"# {folder.name}") < 50 and any("| trained on |" in line for line in lines[:70])
    assert f'agent = ldm_hf.load("pretrained/{folder.name}")' in lines and "<this folder>" not in "\n".join(lines)


def test_the_root_s_card_says_what_the_report_says(report):
    text = (ROOT / "model_card.md").read_text()
    for relation, summary in report.groups["training data"].items():
        row = f"| {relation} | {summary.environments} | {summary.reached[0]} | {summary.reached[1]} | {summary.median:.1%} |"
        found = [line for line in text.splitlines() if line.startswith(row.replace("%", " %"))]
        assert len(found) == 1, row
        if report.model["name"] == "ldm-base":  # the table of ldm-mini has no such column
            assert found[0].endswith(f"| {summary.deterministic_reached[0]}, {summary.deterministic_reached[1]} |")


@pytest.mark.parametrize("name", sorted(MEGABYTES))
def test_the_code_with_the_weights_is_the_package_s(name, tmp_path):
    for part in (LDMConfig, LDMModel, LDMProcessor):
        custom_object_save(part, tmp_path)
    expected, found = (
        {path.name: path.read_bytes() for path in each.glob("*.py")} for each in (tmp_path, PRETRAINED / name)
    )
    assert found == expected, "run `make remote-code`"


def test_a_clone_can_act_at_once(folder, report):
    """The starts of the evaluation again: what the report says of the first episode is what comes out."""
    environment = {"ldm-base": "gymnasium/FrozenLake-v1", "ldm-mini": "gymnasium/CartPole-v1"}[folder.name]
    [reported] = [one for one in report.environments if one.id == environment]
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    result = evaluate_environment(model, processor, environment, episodes=1, rollouts=1)
    assert result.returns == [reported.returns[0][:1]]
