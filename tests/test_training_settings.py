"""Settings that cannot work, and machines that lack what they need: one line each, before anything is opened."""

import pytest

from conftest import run_ldm_here
from ldm_hf.errors import ConfigError
from ldm_hf.training import preflight
from ldm_hf.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate=-1", "learning_rate must be greater than 0, got -1.0"),
        ("learning_rate=.nan", "learning_rate must be a finite number, got nan"),
        ("learning_rate=.inf", "learning_rate must be a finite number, got inf"),
        ("betas=[2,.9]", "betas must be from 0 to below 1, got [2.0, 0.9]"),
        ("betas=[.9]", "betas must be"),
        ("betas=[.nan,.9]", "betas must be from 0 to below 1"),
        ("betas=[", "betas cannot be read as YAML"),
        ("epsilon=0", "epsilon must be greater than 0"),
        ("num_workers=-1", "num_workers must not be negative, got -1"),
        ("num_workers=1.5", "num_workers must be int, got 1.5"),
        ("report_to=junk", "report_to must be none, all, tensorboard, wandb"),
        ("weight_decay=-1", "weight_decay must not be negative"),
        ("warmup_steps=-5", "warmup_steps must not be negative"),
        ("max_grad_norm=0", "max_grad_norm must be greater than 0"),
        ("max_grad_norm=.nan", "max_grad_norm must be a finite number"),
        ("cache_gib=-1", "cache_gib must not be negative"),
        ("decay_fraction=2", "decay_fraction must be from 0 to 1"),
        ("seed=-1", "seed must not be negative"),
        ("seed=99999999999999", "seed must be at most 4294967295"),
        ("context_length=1", "context_length must be at least 2"),
        ("environments=[]", "environments must not be empty"),
        ("environments=[1]", "each of environments must be str, got 1"),
        ("weights={a: 0}", "weights must be positive, got 0.0 for a"),
        ("weights={a: x}", "weights of a must be float, got 'x'"),
        ("data=[]", "data must not be empty"),
        ("output=3", "output must be str, got 3"),
        ("stream=maybe", "stream must be bool"),
    ],
)
def test_a_bad_setting_is_one_line(text, message):
    with pytest.raises(ConfigError) as refused:
        TrainingConfig.load(None, ["data=d", "output=o", text])
    assert message in str(refused.value) and "\n" not in str(refused.value)


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
