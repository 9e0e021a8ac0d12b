"""The recipes: that each can be loaded and shared out, and that the Slurm script does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from conftest import TOY_MODEL
from ldm_hf.errors import ConfigError
from ldm_hf.modeling import LDMConfig
from ldm_hf.training.config import TrainingConfig

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
PROCESSES = {
    "cpu.yaml": [1],
    "ldm-308m.yaml": [1, 8, 16],  # one GPU, a node, two nodes
    "ldm-base/train.yaml": [1, 2],
    "ldm-base/train-2.yaml": [1, 2],
    "ldm-base/train-3.yaml": [1, 2],
    "ldm-base/train-4.yaml": [1, 2],
    "ldm-base/train-6.yaml": [1, 2],
    "ldm-mini/train.yaml": [1, 3],
    "paper.yaml": [1, 8, 16],
}


@pytest.mark.parametrize("name", PROCESSES)
def test_recipes_fit_their_processes(name):
    config = TrainingConfig.load(RECIPES / name)
    assert config.model in LDMConfig.presets() or name.startswith("ldm-base/train-")  # which continue train.yaml
    for processes in PROCESSES[name]:
        pieces = config.accumulation_steps(processes)
        share = config.per_device_train_batch_size or config.train_batch_size // processes
        assert pieces * processes * share == config.train_batch_size


def test_the_paper_is_the_paper():
    config = TrainingConfig.load(RECIPES / "paper.yaml")
    model = LDMConfig.preset(config.model, **config.model_overrides)
    assert (config.train_batch_size, model.max_position_embeddings, config.learning_rate) == (1024, 2048, 2.5e-4)
    assert (config.warmup_steps, config.decay_fraction) == (0, 0.0)  # constant
    assert (model.mask_training_logits, model.action_smoothing, model.action_quantization) == (False, 0.0, "mu_law")
    with pytest.raises(ConfigError, match="batch_size 1024 cannot be shared by 3 processes"):
        config.accumulation_steps(3)


@pytest.mark.parametrize(("name", "machines", "processes"), [("node-8-gpus", 1, 8), ("two-nodes", 2, 16)])
def test_hardware_is_what_it_is_called(name, machines, processes):
    config = load_config_from_file(str(RECIPES / f"accelerate/{name}.yaml"))
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert processes in PROCESSES["ldm-308m.yaml"]


def test_launch_lines_name_files_that_are_there():
    pages = "\n".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    named = set(re.findall(r"(?<![\w/])recipes/[\w./-]*\w", pages))
    assert named == {str(path.relative_to(ROOT)) for path in RECIPES.rglob("*") if path.is_file()}


def test_the_slurm_script_is_bash():
    subprocess.run(["bash", "-n", RECIPES / "slurm.sbatch"], check=True)


SRUN = """#!/usr/bin/env bash
# Two tasks on this machine, with the variables that Slurm gives them; the highest exit status, as srun has it.
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" & tasks[$task]=$!; done
status=0
for task in 0 1; do wait "${tasks[$task]}" || status=$?; done
exit $status
"""
SCONTROL = '#!/usr/bin/env bash\nif [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$LOG"; fi\n'


@pytest.mark.slow
def test_the_slurm_script_trains_and_is_requeued(data, tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    values = {"data": str(data), "output_dir": str(tmp_path / "run"), "model_overrides": TOY_MODEL, "report_to": "none"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "n",
    }
    variables = {**os.environ, **variables, "ACCELERATE_USE_CPU": "true", "LOG": str(tmp_path / "requeued")}
    command = ["bash", str(RECIPES / "slurm.sbatch"), str(tmp_path / "recipe.yaml"), "max_steps=2", "sharding=fsdp2"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/checkpoint-00000002/training.json").exists() and (tmp_path / "run/model").is_dir()
    assert '"num_processes": 2' in (tmp_path / "run/checkpoint-00000002/training.json").read_text()
    assert not (tmp_path / "requeued").exists()
    # What a step that SIGTERM ended leaves behind: the exit status that the next test of these commands sees.
    (tmp_path / "srun").write_text("#!/usr/bin/env bash\nexit 143\n")
    assert subprocess.run(command, env=variables, check=False).returncode == 143
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
