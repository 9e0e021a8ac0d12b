"""The average of models' weights: ``ldm average``."""

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from ldm_hf.cli.main import app
from ldm_hf.errors import CheckpointError, ConfigError
from ldm_hf.hub.pretrained import load_pretrained
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.training.averaging import average_models

SIZES = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 32, "slot_embedding_size": 8}


def saved(folder, value: float, **fields):
    """A model all of whose weights are one number."""
    config = LDMConfig.preset("nano", **{**SIZES, **fields})
    model = LDMModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    model.save_pretrained(folder)
    LDMProcessor.for_config(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def models(tmp_path) -> list[str]:
    first = saved(tmp_path / "first/model", 1.0, environments=["a/A-v0", "a/B-v0"])
    last = saved(tmp_path / "last/model", 5.0, environments=["a/B-v0", "b/C-v0"], previous_action_dropout=0.5)
    (tmp_path / "last/training.yaml").write_text("data: runs/last\nseed: 3\n")
    return [first, last]


@pytest.mark.parametrize(("shares", "expected"), [(None, 3.0), ([1, 1], 3.0), ([3, 1], 2.0), ([0.1, 0.3], 4.0)])
def test_every_weight_is_the_mean_weighted_by_the_shares(models, tmp_path, shares, expected):
    average_models(models, tmp_path / "mean", shares)
    tensors = load_file(tmp_path / "mean/model.safetensors")
    assert tensors.keys() == load_file(tmp_path / "first/model/model.safetensors").keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32 and torch.allclose(tensor, torch.tensor(expected), atol=1e-6), name


def test_the_average_is_a_model_that_says_what_it_is_made_of(models, tmp_path):
    out = tmp_path / "mean"
    arguments = ["average", *models, "--output", str(out), "--share", "1", "--share", "3", "--save-precision", "fp16"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    model, _ = load_pretrained(out)
    assert {float(weight) for tensor in model.state_dict().values() for weight in tensor.unique()} == {4.0}
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float16}
    assert model.config.environments == ["a/A-v0", "a/B-v0", "b/C-v0"]
    assert model.config.previous_action_dropout == 0.5
    card = (out / "README.md").read_text()
    assert "Its weights are the average of those of the models `first`, `last`." in card
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["first", "last"]
    assert yaml.safe_load((out / "training.yaml").read_text()) == {"data": "runs/last", "seed": 3}


def test_a_model_may_be_replaced_by_its_average_with_another(models, tmp_path):
    average_models(models, tmp_path / "first/model")
    model, _ = load_pretrained(tmp_path / "first/model")
    assert float(next(iter(model.state_dict().values())).flatten()[0]) == 3.0


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([1.0], "2 models and 1 shares"),
        ([1.0, 0.0], "above 0, got 1, 0"),
        ([1.0, -1.0], "above 0, got 1, -1"),
        ([1.0, float("nan")], "above 0, got 1, nan"),
        ([1.0, float("inf")], "above 0, got 1, inf"),
    ],
)
def test_shares_that_cannot_be_used(models, tmp_path, shares, message):
    with pytest.raises(ConfigError, match=message):
        average_models(models, tmp_path / "mean", shares)
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers"),
        ({"mu": 50.0}, "mu"),
        ({"action_quantization": "uniform"}, "action_qu"),
    ],
)
def test_models_of_other_configurations_are_refused_by_the_field(models, tmp_path, fields, named):
    other = saved(tmp_path / "other", 1.0, **fields)
    with pytest.raises(ConfigError, match=f"{named}.* only models of one configuration"):
        average_models([models[0], other], tmp_path / "mean")


def test_what_is_no_model_is_neither_read_nor_replaced(models, tmp_path):
    with pytest.raises(ConfigError, match="two models or more, got 1"):
        average_models(models[:1], tmp_path / "mean")
    with pytest.raises(CheckpointError, match="no such folder"):
        average_models([models[0], str(tmp_path / "nothing")], tmp_path / "mean")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers/thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="in the way"):
        average_models(models, tmp_path / "papers")
    assert (tmp_path / "papers/thesis.txt").read_text() == "years of work"
    (tmp_path / "papers/config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="in the way"):
        average_models(models, tmp_path / "papers")
    with pytest.raises(ConfigError, match="in the way"):
        average_models(models, tmp_path / "papers/thesis.txt")
    assert (tmp_path / "papers/thesis.txt").read_text() == "years of work"
    with pytest.raises(ConfigError, match="fp32 or fp16"):
        average_models(models, tmp_path / "mean", save_precision="int4")
