"""What experiments share: the command line in a process of one thread, and the score of an evaluation."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np


def run_ldm(folder: Path, *arguments: object) -> None:
    """Run ``ldm`` on one core, what it says at the end of ``log.txt`` in a folder; raises where it fails."""
    with (folder / "log.txt").open("a") as log:
        command = [sys.executable, "-m", "ldm_hf", *map(str, arguments)]
        subprocess.run(command, stdout=log, stderr=log, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def score(result: dict[str, Any]) -> float:
    """Of an environment in ``report.json``: 0 at a random policy or below, 1 at the deterministic reference or above."""
    low, high = result["random"]["mean"], result["deterministic_return"]
    return float(np.clip((result["mean_return"] - low) / (high - low), 0, 1))
