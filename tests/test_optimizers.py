"""The optimizers of training: which weights each has, and what a step of Muon does."""

import re

import pytest
import torch
from safetensors.torch import load_file

from conftest import TOY_MODEL
from ldm_hf.errors import ConfigError
from ldm_hf.modeling import LDMConfig, LDMModel
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.optimizers import make_optimizers
from test_distributed import logged, made_settings, trained_here

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 has Muon")
MATRICES = {"self_attn": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"]}


def config(**changes) -> TrainingConfig:
    return TrainingConfig(data="data", output_dir="run", **changes)


@pytest.fixture
def fresh() -> LDMModel:
    torch.manual_seed(0)
    return LDMModel(LDMConfig.preset("nano", **TOY_MODEL))


def names_of(model, optimizer) -> list[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


@needs_muon
def test_muon_has_the_matrices_of_the_layers_and_adamw_all_others(fresh):
    adamw, muon = make_optimizers(fresh, config(optim="muon"))
    assert sorted(names_of(fresh, muon)) == sorted(
        f"backbone.layers.{layer}.{block}.{name}.weight"
        for layer in range(fresh.config.num_hidden_layers)
        for block, names in MATRICES.items()
        for name in names
    )
    assert sorted(names_of(fresh, adamw) + names_of(fresh, muon)) == sorted(dict(fresh.named_parameters()))
    [alone] = make_optimizers(fresh, config())
    assert type(adamw) is type(alone) is torch.optim.AdamW
    assert sorted(names_of(fresh, alone)) == sorted(dict(fresh.named_parameters()))
    for optimizer in (adamw, alone):
        assert all(
            (group["weight_decay"] == 0) == (one.ndim <= 1)
            for group in optimizer.param_groups
            for one in group["params"]
        )


@needs_muon
def test_a_step_of_muon_changes_all_directions_alike_and_as_much_as_adamw_would(fresh):
    """Whatever the gradient's singular values, 1 to 1000 here, those of the step are near 0.2 sqrt(largest side) each."""
    weight = fresh.backbone.layers[0].mlp.up_proj.weight
    before, (rows, columns) = weight.detach().clone(), weight.shape
    _, muon = make_optimizers(fresh, config(optim="muon", learning_rate=0.5, weight_decay=0.0))
    left, right = (torch.linalg.qr(torch.randn(side, min(weight.shape)))[0] for side in weight.shape)
    weight.grad = left @ torch.diag(torch.logspace(0, 3, min(weight.shape))) @ right.T
    muon.step()
    sizes = torch.linalg.svdvals(before - weight.detach()) / (0.5 * 0.2 * max(rows, columns) ** 0.5)
    # Five iterations bring the small ones, a thousandth of the norm at the least, to 0.3 or more, and none beyond 1.3.
    assert sizes.max() < 1.3 and sizes.min() > 0.3


@pytest.mark.parametrize(
    ("frozen", "missing", "reason"),
    [
        pytest.param(
            r"\.layers\.",
            False,
            "optim=muon changes matrices of layers, of which none are trained here: leave optim out",
            marks=needs_muon,
        ),
        ("nothing", True, "optim=muon needs torch 2.9, and this is "),
    ],
)
def test_what_muon_cannot_do_is_said(fresh, monkeypatch, frozen, missing, reason):
    for name, parameter in fresh.named_parameters():
        parameter.requires_grad_(re.search(frozen, name) is None)
    if missing:
        monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ConfigError, match=re.escape(reason)):
        make_optimizers(fresh, config(optim="muon"))
    with pytest.raises(ConfigError, match="optim"):
        config(optim="sgd")


@needs_muon
def test_training_with_muon_resumes_bit_for_bit(data, tmp_path):
    changes = {"optim": "muon", "learning_rate": 1e-3, "warmup_steps": 2}
    once = trained_here(made_settings(tmp_path / "once", data, **changes))
    trained_here(made_settings(tmp_path / "twice", data, max_steps=2, **changes))
    twice = trained_here(made_settings(tmp_path / "twice", data, max_steps=4, **changes))
    for name in ("model", "optimizer", "random"):
        first, second = (load_file(run / f"checkpoint-00000004/{name}.safetensors") for run in (once, twice))
        assert set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first)
    assert logged(twice)[4] < logged(twice)[1]
    with pytest.raises(ConfigError, match="optim muon and is adamw_torch_fused"):
        trained_here(made_settings(tmp_path / "twice", data, max_steps=6, learning_rate=1e-3))
