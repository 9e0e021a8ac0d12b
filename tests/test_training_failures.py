"""Training that cannot fail quietly: what is not finite, wrong data, other settings than before."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from conftest import CARTPOLE, CLIFF, PENDULUM, TOY_MODEL, run_ldm, run_ldm_here
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.errors import ConfigError, DatasetFormatError, TrainingDivergedError
from ldm_hf.modeling import LDMProcessor
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.loop import train
from ldm_hf.training.mixture import Mixture
from test_checks import describe, rewrite, setting
from test_training import toy_settings, write_settings

DIVERGING = {"learning_rate": 1e30, "max_grad_norm": 1e30, "max_steps": 20, "save_steps": 1, "save_total_limit": 1}


def settings(data: Path, output: Path, **changes) -> TrainingConfig:
    return TrainingConfig(**toy_settings(data, output, **changes))


def only_finite_files(output: Path) -> None:
    for path in output.rglob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert tensor.isfinite().all(), f"{path}: {name}"


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory) -> Path:
    """A run of one step."""
    output = tmp_path_factory.mktemp("begun") / "run"
    train(settings(data, output, max_steps=1))
    return output


@pytest.fixture
def run(begun, tmp_path) -> Path:
    """A copy of it, to continue with."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


@pytest.mark.parametrize("changes", [{}, {"per_device_train_batch_size": 1, "dataloader_num_workers": 1}])
def test_a_run_that_diverges_stops_and_keeps_the_last_finite_checkpoint(data, run, changes):
    before = {path: path.read_bytes() for path in (run / "checkpoint-00000001").iterdir()}
    config = settings(data, run, **DIVERGING, **changes)
    with pytest.raises(TrainingDivergedError) as stopped:
        train(config)
    message = str(stopped.value)
    assert "\n" not in message and "not finite" in message and "the checkpoint of step 1 is kept" in message
    # The sequences are those of the step that failed, each by environment, file and rows; worked out from the mixture.
    record = json.loads((run / "diverged.json").read_text())
    mixture = Mixture(open_datasets(data), LDMProcessor.from_pretrained(run / "model"), context_length=16)
    first = (record["step"] - 1) * config.train_batch_size
    for number, found in zip(range(first, first + config.train_batch_size), record["sequences"], strict=True):
        environment, chunk, start = mixture.locate(number)
        dataset = open_datasets(data)[environment]
        row = int(dataset.chunk_lengths[:chunk].sum()) + start  # each environment has one file
        assert (found["environment"], found["first_row"], found["last_row"]) == (dataset.environment, row, row + 15)
        assert f"{dataset.environment} {found['file']} rows" in message and f"{row}-{row + 15}" in message
    assert message.startswith(f"step {record['step']}: ")
    assert {path: path.read_bytes() for path in (run / "checkpoint-00000001").iterdir()} == before
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-00000001"]
    only_finite_files(run)


def test_divergence_in_the_first_step_leaves_no_checkpoint_and_no_model(data, tmp_path):
    values = toy_settings(data, tmp_path / "run", **DIVERGING)
    done = run_ldm_here("train", "--config", write_settings(tmp_path / "s.yaml", values))
    assert done.returncode == 1 and "The model is in" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: step ") and "no checkpoint was written before" in last
    assert not list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "run/model").exists()


def test_weights_that_overflow_in_the_last_step_are_not_written(data, run, monkeypatch):
    """Loss and gradient of the step are finite; the weights after it are not."""
    step = torch.optim.AdamW.step

    def overflow(self, *arguments, **options):
        step(self, *arguments, **options)
        with torch.no_grad():
            self.param_groups[0]["params"][0].view(-1)[0] = torch.inf

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    with pytest.raises(TrainingDivergedError, match="step 2: the weights are not finite"):
        train(settings(data, run, max_steps=2))
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-00000001"]


@pytest.mark.parametrize(
    ("environment", "change", "reason"),
    [
        (CARTPOLE, setting("observation", 700, np.nan, slot=2), "observation holds nan in slot 2"),
        (CARTPOLE, setting("reward", 700, np.inf), "the reward is inf"),
        (CARTPOLE, setting("action", 700, 77, slot=0), "action holds 77 in slot 0, which takes 0 to 1"),
        (
            CARTPOLE,
            setting("reference_action", 700, 2, slot=0),
            "reference_action holds 2 in slot 0, which takes 0 to 1",
        ),
        (CLIFF, setting("observation", 700, -1, slot=0), "observation holds -1 in slot 0, which takes 0 to 47"),
        (PENDULUM, setting("reference_action", 700, np.nan, slot=0), "reference_action holds nan"),
    ],
)
def test_wrong_data_are_refused_by_environment_file_and_row(data, tmp_path, processor, environment, change, reason):
    shutil.copytree(data, tmp_path / "data")
    [file] = (tmp_path / "data" / environment).glob("*/train-00000-of-00001.parquet")
    rewrite(file.parent, change)
    mixture = Mixture(open_datasets(tmp_path / "data", [environment]), processor, context_length=16)
    with pytest.raises(DatasetFormatError) as refused:
        for number in range(mixture._datasets[0].num_chunks):  # every chunk once
            mixture[number]
    assert str(refused.value).startswith(f"{environment}: {file}, row 700: {reason}")


@pytest.mark.parametrize("workers", [0, 1])
def test_wrong_data_end_training_in_one_line(data, tmp_path, workers):
    """Also where a loader worker reads them, which must not outlive the run, nor make it wait."""
    shutil.copytree(data, tmp_path / "data")
    [file] = (tmp_path / "data" / CARTPOLE).glob("*/train-00000-of-00001.parquet")
    rewrite(file.parent, setting("reward", 5, np.nan))
    values = toy_settings(
        tmp_path / "data", tmp_path / "run", environments=[CARTPOLE], max_steps=50, dataloader_num_workers=workers
    )
    config = write_settings(tmp_path / "s.yaml", values)
    done = (run_ldm if workers else run_ldm_here)("train", "--config", config)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == f"error: {CARTPOLE}: {file}, row 5: the reward is nan"


def test_a_blank_sequence_has_the_shape_of_the_one_that_it_stands_for(data, processor):
    mixture = Mixture(open_datasets(data), processor, context_length=16)
    for number in range(6):
        found, blank = mixture[number], mixture.blank(number)
        for name, value in vars(found).items():
            if isinstance(value, np.ndarray):
                assert getattr(blank, name).shape == value.shape, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed 0 and is 1"),
        ({"train_batch_size": 8}, "train_batch_size 4 and is 8"),
        ({"context_length": 8}, "context_length 16 and is 8"),
        ({"weights": "size"}, "weights uniform and is size"),
        ({"sequences_per_chunk": 2}, "sequences_per_chunk 1 and is 2"),
        ({"adam_beta1": 0.8}, "adam_beta1 0.9 and is 0.8"),
        ({"environments": [CARTPOLE]}, f"3 environments and is to have 1, without {CLIFF}, {PENDULUM}"),
        ({"model_overrides": {**TOY_MODEL, "mu": 50.0}}, "mu of the model 100.0 and is 50.0"),
        ({"model_overrides": {**TOY_MODEL, "num_bins": 512}}, "num_bins of the model 1024 and is 512"),
        ({"model": "nano", "lora_rank": 2}, "lora_rank null and is 2"),
    ],
)
def test_other_settings_that_change_what_weights_or_order_mean_are_refused_by_name(data, run, changes, message):
    before = (run / "training.yaml").read_bytes()
    with pytest.raises(ConfigError) as refused:
        train(settings(data, run, max_steps=2, **changes))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert "Set back what differs to continue, or set another output" in str(refused.value)
    assert (run / "training.yaml").read_bytes() == before


def test_other_data_of_the_same_environments_are_refused(data, run, tmp_path):
    moved = shutil.copytree(data, tmp_path / "elsewhere")
    train(settings(moved, run, max_steps=2))  # the same data in another place
    [file] = (moved / CARTPOLE).glob("*/train-00000-of-00001.parquet")
    table = pq.read_table(file)
    pq.write_table(table, file, row_group_size=256)  # other chunks, in another order of sequences
    describe(file.parent)
    with pytest.raises(ConfigError, match=f"other data of {CARTPOLE}"):
        train(settings(moved, run, max_steps=3))


def test_settings_that_may_change_are_recorded(data, run):
    free = {"dataloader_num_workers": 1, "per_device_train_batch_size": 2, "logging_steps": 2, "cache_gib": 0.1}
    train(settings(data, run, max_steps=2, learning_rate=1e-4, **free))
    record = json.loads((run / "checkpoint-00000002/training.json").read_text())
    assert [(entry["from_step"], entry["settings"]["learning_rate"]) for entry in record["history"]] == [
        (0, 2.5e-4),
        (1, 1e-4),
    ]


def test_a_checkpoint_of_before_continues_and_forgets_no_environment(data, run):
    path = run / "checkpoint-00000001/training.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: record[name] for name in ("format", "step", "num_processes")}))
    train(settings(data, run, max_steps=2, environments=[CARTPOLE]))
    assert AutoConfig.from_pretrained(run / "model").environments == [CARTPOLE, CLIFF, PENDULUM]
    assert json.loads((run / "checkpoint-00000002/training.json").read_text())["bound"]["train_batch_size"] == 4
    with pytest.raises(ConfigError, match=r"mu of the model 100\.0 and is 50\.0"):
        train(settings(data, run, max_steps=3, model_overrides={**TOY_MODEL, "mu": 50.0}))
