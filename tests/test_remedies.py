"""The study of remedies: each is trained, fine-tuned and played, and the page counts as it says."""

import json

import numpy as np
import pytest

from conftest import CARTPOLE, CLIFF, PENDULUM, TOY_MODEL
from ldm_hf.evaluation.protocol import Protocol
from ldm_hf.experiments.worth import remedies, remedies_page
from ldm_hf.experiments.worth.page import Scale
from ldm_hf.experiments.worth.remedies import ENVIRONMENTS
from ldm_hf.modeling import LDMConfig
from ldm_hf.training.config import TrainingConfig


@pytest.fixture
def small(monkeypatch):
    few = {"model_overrides": {**TOY_MODEL, "max_position_embeddings": 32}, "context_length": 32, "max_steps": 2}
    monkeypatch.setattr(remedies, "PRETRAINING", {**remedies.PRETRAINING, **few, "environments": None})
    tuning = {**remedies.TUNING, "context_length": 16, "max_steps": 2, "train_batch_size": 2}
    monkeypatch.setattr(remedies, "TUNING", tuning)
    monkeypatch.setattr(remedies, "PROTOCOL", Protocol(1, 2))
    kept = [CARTPOLE, CLIFF, PENDULUM]
    monkeypatch.setattr(
        remedies,
        "training_datasets",
        lambda config: [type("D", (), {"environment": name}) for name in (*kept, ENVIRONMENTS[0])],
    )


def test_a_cell(small, data, tmp_path):
    found = remedies.measure(remedies.Cell("pretrained", CARTPOLE, 1), data, tmp_path)
    assert set(found["returns"]) == set(remedies.PLAYS)
    assert all(np.shape(returns) == (2, 1) for returns in found["returns"].values())
    config = LDMConfig.from_pretrained(tmp_path / "models/plain/model")
    assert config.environments == sorted([CARTPOLE, CLIFF, PENDULUM])  # what is held out is not among them
    assert not list((tmp_path / "tuned").iterdir())
    before = (tmp_path / "models/plain/model/model.safetensors").stat().st_mtime_ns
    remedies.measure(remedies.Cell("embedding and head at random", CARTPOLE, 0), data, tmp_path)
    assert (tmp_path / "models/plain/model/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("remedy", remedies.REMEDIES.values(), ids=remedies.REMEDIES)
def test_remedies_have_settings_that_there_are(remedy):
    TrainingConfig.from_mapping({"data": "d", "output_dir": "o", **remedies.PRETRAINING, **remedy.pretraining})
    TrainingConfig.from_mapping({"data": "d", "output_dir": "o", **remedies.TUNING, **remedy.tuning})
    assert set(remedy.plays) <= set(remedies.PLAYS)
    same = [one.pretraining for one in remedies.REMEDIES.values() if one.model == remedy.model]
    assert all(settings == remedy.pretraining for settings in same)  # a name is one model


def test_counts_by_hand(tmp_path):
    """Two environments: one far above random weights on both seeds, one as far below."""
    names, scales = ENVIRONMENTS[:2], {name: Scale(0.0, 10.0, None) for name in ENVIRONMENTS[:2]}
    (tmp_path / "cells").mkdir()
    for remedy, means in (("random weights", (1.0, 9.0)), ("pretrained", (9.5, 2.0))):
        for seed in (0, 1):
            for name, mean in zip(names, means, strict=True):
                cell = remedies.Cell(remedy, name, seed)
                found = {**vars(cell), "returns": {"greedy": [[mean + seed / 10], [mean]]}, "seconds": 1.0}
                (tmp_path / f"cells/{cell.name}.json").write_text(json.dumps(found))
    text = remedies_page.page(remedies_page.read(tmp_path, scales))
    assert "| pretrained | 2 | 1 | 1 | 1 | 58% | 1 |" in text  # (95.25 + 20.25) / 2, and one of them is 90 %
    assert "| random weights | 2 |  |  |  | 50% | 1 |" in text
    assert "95% ± 3" in text
