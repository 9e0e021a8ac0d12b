"""What a transition costs each candidate of the pool beside its environment, on one core; `ldm build --dry-run` reads it.

python benchmarks/step_costs.py --jobs 4 --output src/ldm_hf/dataset_builder/build/step_costs.json
"""

import argparse
import contextlib
import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ldm_hf.dataset_builder.reference.candidates import OFF_POLICY, Candidate, pool
from ldm_hf.dataset_builder.reference.policy import train_policy
from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.modeling.spaces_ldm import space_to_json

SECONDS = 10.0
DEFAULT_ROLLOUTS = {"PPO": 2048, "A2C": 5, "TRPO": 2048}


class Noise(gymnasium.Env):
    """Random observations of a kind at no cost, with episodes of 100 steps; images are of 8 x 8 tiles, as games have."""

    def __init__(self, image: bool, continuous: bool):
        shape = (64, 64, 3) if image else (16,)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8) if image else spaces.Box(-1, 1, shape)
        self.action_space = spaces.Box(-1, 1, (4,)) if continuous else spaces.Discrete(4)
        generator = np.random.default_rng(0)
        self._observations = [self.observation_space.sample() for _ in range(16)]
        if image:
            tiles = generator.integers(0, 256, (16, 8, 8, 3), np.uint8)
            self._observations = list(tiles.repeat(8, 1).repeat(8, 2))
        self._count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._count = 0
        return self._observations[0], {}

    def step(self, action):
        self._count += 1
        return self._observations[self._count % 16], float(self._count % 3), False, self._count == 100, {}


class Enough(Exception):
    """The measurement has what it needs."""


def measure(name: str, image: bool) -> float | None:
    """Seconds a transition once learning has begun, over whole rollouts; None where the candidate is not for this kind."""
    torch.set_num_threads(1)
    candidate = pool()[name]
    for continuous in (False, True):
        env = Noise(image, continuous)
        described = space_to_json(env.observation_space), space_to_json(env.action_space)
        if candidate.incompatibility(*described) is None:
            return _seconds(candidate, image, continuous)
    return None


def _seconds(candidate: Candidate, image: bool, continuous: bool) -> float:
    parameters = dict(candidate.hyperparameters)
    if candidate.algorithm in OFF_POLICY:
        parameters |= {"learning_starts": 500, "buffer_size": 2000}  # what comes later costs the same
    rollout = parameters.get("n_steps", DEFAULT_ROLLOUTS.get(candidate.algorithm, 1)) * candidate.num_envs
    if isinstance(parameters.get("train_freq"), int):
        rollout = parameters["train_freq"] * candidate.num_envs
    # ARS updates after whole episodes of all its directions.
    rollout = 200 * parameters.get("n_delta", 8) if candidate.algorithm == "ARS" else rollout
    first = rollout * max(1, -(-600 // rollout))
    marks: list[tuple[int, float]] = []

    def progress(done: int) -> None:
        if done >= first and done % rollout < candidate.num_envs:
            marks.append((done, time.perf_counter()))
            if len(marks) > 1 and marks[-1][1] - marks[0][1] > SECONDS:
                raise Enough

    venv = Sb3VecEnv(
        SyncVectorEnv([lambda: Noise(image, continuous)] * candidate.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    )
    with contextlib.suppress(Enough):
        train_policy(
            venv, replace(candidate, hyperparameters=parameters), timesteps=10_000_000, seed=0, progress=progress
        )
    (start, began), (stop, ended) = marks[0], marks[-1]
    return (ended - began) / (stop - start)


def main() -> None:
    """Measure all candidates, a process each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, help="The package's table.")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tasks = [(name, image) for name in pool() for image in (False, True)]
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, maxtasksperchild=1) as workers:
        results = workers.starmap(measure, tasks, chunksize=1)
    costs: dict[str, dict[str, float]] = {}
    for (name, image), seconds in zip(tasks, results, strict=True):
        if seconds is not None:
            costs.setdefault(name, {})["image" if image else "vector"] = float(f"{seconds:.3g}")
    rows = [
        [name, *(f"{1 / kinds[kind]:,.0f}" if kind in kinds else "" for kind in ("vector", "image"))]
        for name, kinds in costs.items()
    ]
    print_table("Transitions a second on one core, environment not counted", ["candidate", "vector", "image"], rows)
    if arguments.output:
        about = (
            "Seconds that a candidate takes for a transition beside its environment, one core; benchmarks/step_costs.py"
        )
        arguments.output.write_text(json.dumps({"about": about, "seconds": costs}, indent=1) + "\n")
    write_json(
        arguments.json,
        {f"{name}_{kind}_seconds": value for name, kinds in costs.items() for kind, value in kinds.items()},
    )


if __name__ == "__main__":
    main()
