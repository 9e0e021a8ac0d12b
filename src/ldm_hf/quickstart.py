"""``ldm quickstart``: the three commands from environments to an evaluated model, one after the other.

Each of them resumes where it was interrupted, and leaves alone what it has finished.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm_hf.utils.processes import run_child

ENVIRONMENTS = (
    "gymnasium/Acrobot-v1",  # continuous observations, discrete actions
    "gymnasium/CartPole-v1",
    "gymnasium/CliffWalkingSlippery-v1",  # discrete observations and actions
    "gymnasium/Pendulum-v1",  # continuous observations and actions
)
RACE = ("--core-minutes", "1.5")
"""Options of `ldm build`: how long candidates may race on each environment."""

TRAINING: dict[str, Any] = {
    "model": "nano",
    "train_batch_size": 16,
    "learning_rate": 1e-3,
    "warmup_steps": 50,
    "decay_fraction": 0.3,
    "save_steps": 100,
}
STEPS = 600


def quickstart(
    output: Path,
    *,
    jobs: int,
    seed: int,
    steps: int = STEPS,
    environments: Sequence[str] = ENVIRONMENTS,
    options: Sequence[str] = RACE,
) -> Path:
    """Race for references, train a model on them, and evaluate it, each in a process of its own.

    Args:
        output: folder for everything.
        jobs: processes that train references; half as many threads train the model.
        seed: random seed of each command.
        steps: optimizer steps of the model.
        environments: ids.
        options: of `ldm build`.

    Returns:
        The report.

    Raises:
        ChildFailure: a command failed, and has said why.
    """
    data, settings = str(output / "data"), {**TRAINING, "max_steps": steps, "seed": seed}
    commands = [
        ["build", *environments, *options, "--jobs", str(jobs), "--seed", str(seed), "--output", data],
        [
            "train",
            "--data",
            data,
            "--output_dir",
            str(output),
            *(part for name, value in settings.items() for part in (f"--{name}", str(value))),
        ],
        ["evaluate", str(output / "model"), "--data", data, "--output", str(output), "--seed", str(seed)],
    ]
    # Threads wait for each other at every layer: one that shares its core holds up all, so half of the cores stay free.
    threads = (1, max(1, jobs // 2), 1)
    for number, (command, count) in enumerate(zip(commands, threads, strict=True), start=1):
        print(f"\n{number}/{len(commands)}  ldm {shlex.join(command)}", file=sys.stderr, flush=True)
        run_child([sys.executable, "-m", "ldm_hf", *command], {"OMP_NUM_THREADS": str(count)})
    return output / "report.json"
