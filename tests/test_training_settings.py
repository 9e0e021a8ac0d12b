"""Settings that cannot work, and machines that lack what they need: one line each, before anything is opened."""

import math

import pytest
import yaml

from conftest import run_ldm_here
from ldm_hf.errors import ConfigError
from ldm_hf.training import preflight
from ldm_hf.training.config import TrainingConfig, read_value, renamed, settings


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", -1, "learning_rate cannot be used: input should be greater than 0, got -1"),
        ("learning_rate", math.nan, "got nan"),
        ("learning_rate", math.inf, "input should be less than inf, got inf"),
        ("adam_beta1", 2, "input should be less than 1, got 2"),
        ("adam_beta2", math.nan, "got nan"),
        ("adam_epsilon", 0, "input should be greater than 0"),
        ("dataloader_num_workers", -1, "greater than or equal to 0, got -1"),
        ("dataloader_num_workers", 1.5, "input should be a valid integer"),
        ("report_to", "junk", "input should be 'none', 'all', 'tensorboard', 'wandb'"),
        ("sharding", "zero3", "input should be 'none' or 'fsdp2', got 'zero3'"),
        ("bf16", "fp8", "input should be a valid boolean"),
        ("max_steps", "many", "max_steps cannot be used: input should be a valid integer"),
        ("max_steps", 0, "greater than or equal to 1, got 0"),
        ("max_steps", True, "input should be a valid integer, got True"),
        ("per_device_train_batch_size", 0, "greater than or equal to 1"),
        ("weight_decay", -1, "greater than or equal to 0"),
        ("warmup_steps", -5, "greater than or equal to 0"),
        ("max_grad_norm", 0, "greater than 0"),
        ("max_grad_norm", math.nan, "got nan"),
        ("cache_gib", -1, "greater than or equal to 0"),
        ("decay_fraction", 2, "less than or equal to 1"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 99999999999999, "less than or equal to 4294967295"),
        ("context_length", 1, "greater than or equal to 2"),
        ("environments", [], "at least 1 item"),
        ("environments", [1], "environments 0 cannot be used: input should be a valid string, got 1"),
        ("weights", {"a": 0}, "weights 'a' cannot be used: input should be greater than 0, got 0"),
        ("weights", {"a": "x"}, "weights 'a' cannot be used"),
        ("weights", "unform", "input should be 'uniform' or 'size', got 'unform'"),
        ("data", [], "at least 1 item"),
        ("data", "", "at least 1 character"),
        ("output_dir", 3, "input should be a valid string, got 3"),
        ("stream", "maybe", "stream cannot be used: input should be a valid boolean"),
    ],
)
def test_a_bad_setting_is_one_line(name, value, message):
    with pytest.raises(ConfigError) as refused:
        TrainingConfig.load(None, {"data": "d", "output_dir": "o", name: value})
    assert message in str(refused.value) and name in str(refused.value) and "\n" not in str(refused.value)


def test_a_value_is_read_as_yaml():
    for text, value in (("3", 3), ("[a, b]", ["a", "b"]), ("{a: 2.5}", {"a": 2.5}), ("x/y-v0", "x/y-v0")):
        assert read_value("weights", text) == value
    with pytest.raises(ConfigError, match=r"environments cannot be read as YAML, got '\['"):
        read_value("environments", "[")


def test_settings_by_their_older_names_are_read_with_a_warning(tmp_path):
    older = {"output": "o", "steps": 7, "batch_size": 8, "betas": [0.8, 0.9], "precision": "fp32", "log_with": "none"}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"data": "d", **older}))
    with pytest.warns(FutureWarning) as warned:
        config = TrainingConfig.load(tmp_path / "s.yaml")
    said = [str(each.message) for each in warned]
    assert len(said) == len(older)
    assert f"{tmp_path / 's.yaml'} sets steps, which is called max_steps now" in said
    today = {"max_steps": 7, "train_batch_size": 8, "adam_beta1": 0.8, "adam_beta2": 0.9, "bf16": False}
    assert config == TrainingConfig("d", "o", **today, report_to="none")
    assert TrainingConfig.from_mapping(renamed({"precision": "auto", "output": "o", "data": "d"})).bf16 is None


def test_every_setting_says_what_it_means_and_is_an_option():
    shown = run_ldm_here("train", "--help")
    assert all(f"--{name}"[:30] in shown.stdout for name in settings())
    assert all(text.endswith(".") for text in settings().values())


def test_infinite_clipping_is_none():
    assert TrainingConfig("d", "o", max_grad_norm=float("inf")).max_grad_norm == float("inf")


def test_a_tracker_that_is_not_installed_is_refused_before_data_are_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_is_installed", lambda tracker: tracker == "tensorboard")
    done = run_ldm_here("train", "--data", "/nowhere", "--output_dir", tmp_path / "run", "--report_to", "wandb")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: report_to=wandb needs a package that is not installed: pip install wandb")
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for output in ("file", "file/run"):
        with pytest.raises(ConfigError, match=r"cannot be a folder: .*file is a file"):
            preflight.check_machine(TrainingConfig("d", str(tmp_path / output)))
    assert (tmp_path / "file").read_text() == "mine"

    def full(**options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preflight.tempfile, "TemporaryFile", full)
    with pytest.raises(ConfigError, match=r"cannot be written: .*No space left on device; set another output"):
        preflight.check_machine(TrainingConfig("d", str(tmp_path / "new/run")))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
