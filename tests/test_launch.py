"""`ldm launch`: what fails in training processes ends in one line and their status, on one process and on several."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from conftest import CARTPOLE
from ldm_hf.utils import processes
from test_checks import rewrite, setting
from test_training import toy_settings, write_settings

OPTIONS = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def command(number: int, *arguments: object) -> list[str]:
    several = ["--multi_gpu"] if number > 1 else []
    launcher = ["-m", "ldm_hf", "launch", "--num_processes", str(number), *several, *OPTIONS, "-m", "ldm_hf", "train"]
    return [sys.executable, *launcher, *map(str, arguments)]


def launched(number: int, *arguments: object) -> subprocess.CompletedProcess:
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        command(number, *arguments), env=variables, capture_output=True, text=True, check=False, timeout=300
    )


def said(text: str) -> list[str]:
    """The lines of an output, without the progress bar's."""
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip() and not line.startswith("training:")]


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_wrong_setting_is_one_line(tmp_path, number):
    done = launched(number, "--data", "d", "--output_dir", tmp_path / "run", "--learning_rate", "-1")
    assert done.returncode == 1
    assert said(done.stderr) == ["error: learning_rate cannot be used: input should be greater than 0, got -1"]


def test_a_missing_file_of_settings_is_one_line():
    done = launched(1, "--config", "x.yaml", "--data", "d")
    [line] = said(done.stderr)
    assert done.returncode == 1 and line.startswith("error: x.yaml cannot be read as YAML settings")


@pytest.mark.slow
@pytest.mark.parametrize("per_device_train_batch_size", [1, 2])
def test_processes_that_diverge_stop_together_in_one_line(data, tmp_path, per_device_train_batch_size):
    changes = {
        "learning_rate": 1e30,
        "max_grad_norm": 1e30,
        "max_steps": 50,
        "per_device_train_batch_size": per_device_train_batch_size,
    }
    config = write_settings(tmp_path / "s.yaml", toy_settings(data, tmp_path / "run", **changes))
    done = launched(2, "--config", config)
    [line] = said(done.stderr)
    assert done.returncode == 1 and line.startswith("error: step ") and "not finite" in line
    assert not list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "run/model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_one_process_cannot_use_end_all_in_one_line(data, tmp_path, workers):
    shutil.copytree(data, tmp_path / "data")
    [file] = (tmp_path / "data" / CARTPOLE).glob("*/train-00000-of-00001.parquet")
    rewrite(file.parent, setting("reward", 5, np.nan))
    changes = {"environments": [CARTPOLE], "max_steps": 50, "dataloader_num_workers": workers}
    config = write_settings(tmp_path / "s.yaml", toy_settings(tmp_path / "data", tmp_path / "run", **changes))
    done = launched(2, "--config", config)
    assert done.returncode == 1
    assert said(done.stderr) == [f"error: {CARTPOLE}: {file}, row 5: the reward is nan"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_a_signal_to_the_launcher_ends_in_one_line(data, tmp_path, number):
    values = toy_settings(data, tmp_path / "run", max_steps=100_000, save_steps=2, dataloader_num_workers=1)
    config = write_settings(tmp_path / "s.yaml", values)
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    with (tmp_path / "stderr").open("w") as stderr:
        running = subprocess.Popen(command(number, "--config", config), env=variables, stderr=stderr)
    while not list((tmp_path / "run").glob("checkpoint-*[0-9]")):
        assert running.poll() is None and time.sleep(0.05) is None
    children = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGTERM)
    assert running.wait(120) == 143
    [line] = said((tmp_path / "stderr").read_text())
    assert line.startswith("SIGTERM: stopped after step")
    assert not psutil.wait_procs(children, timeout=30)[1]


def test_processes_of_a_launch_say_a_line_once(tmp_path, monkeypatch):
    def said_by(rank: int, line: str) -> bool:
        (tmp_path / str(rank)).mkdir(exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / str(rank) / "error.json"))
        return processes.is_first_to_say(line)

    assert [said_by(0, "same"), said_by(1, "same"), said_by(1, "other")] == [True, False, True]
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    assert processes.is_first_to_say("same") and processes.is_first_to_say("same")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(Path("/nowhere/at/all/error.json")))
    assert processes.is_first_to_say("same")


@pytest.mark.long
def test_an_elastic_run_survives_a_node_that_is_killed(data, tmp_path):
    """Two launchers on one machine are two nodes: the second is killed and launched again, and the weights are the same."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def node(rank: int, settings: Path, *elastic: str) -> subprocess.Popen:
        options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "2", "--machine_rank", str(rank), *elastic]
        options += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port), *OPTIONS[2:6]]
        command = [sys.executable, "-m", "ldm_hf", "launch", *options, "-m", "ldm_hf", "train", "--config", settings]
        variables = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        return subprocess.Popen(list(map(str, command)), env=variables, start_new_session=True)

    changes = {"max_steps": 400, "save_steps": 20}
    whole, broken = (
        write_settings(tmp_path / f"{name}.yaml", toy_settings(data, tmp_path / name, **changes))
        for name in ("whole", "broken")
    )
    alone = [node(rank, whole) for rank in (0, 1)]
    assert [one.wait(300) for one in alone] == [0, 0]
    # By their names both are the first node, so each is told whether it holds the meeting place.
    elastic = [
        ("--rdzv_backend", "c10d", "--max_restarts", "5", "--rdzv_conf", f"is_host={host}")
        for host in ("true", "false")
    ]
    first, second = (node(rank, broken, *elastic[rank]) for rank in (0, 1))
    while not any((tmp_path / "broken").glob("**/checkpoint-*")):
        assert first.poll() is None and time.sleep(0.05) is None
    for process in [second, *psutil.Process(second.pid).children(recursive=True)]:
        os.kill(process.pid, signal.SIGKILL)
    second.wait()
    again = node(1, broken, *elastic[1])
    assert (first.wait(300), again.wait(300)) == (0, 0)
    expected, found = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken"))
    for name, weights in expected.items():
        np.testing.assert_array_equal(found[name], weights, err_msg=name)
