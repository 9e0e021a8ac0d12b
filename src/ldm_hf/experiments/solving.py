"""What ``ldm solve`` finds beside PPO alone, given as much time: environments of three kinds, from a home without anything.

    python -m ldm_hf.experiments.solving --output runs/solving --hours 0.25 --json figures.json

PPO is Stable-Baselines3's with its own defaults, in one copy of the environment, on one core, for the time that ``solve``
took on one core, installing what is missing included. Both are judged by 20 deterministic episodes on seeds that neither
was trained or chosen on. Environments that are done are only read when the command is run again; one that was interrupted
is begun again, because the time that it had taken is not known.
"""

import argparse
import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.utils.files import remove, replacing

TARGETS = ("gymnasium/Pendulum-v1", "minatar/MinAtar/Breakout-v1", "gymnasium-cartpole-swingup")
"""Continuous control; a game of small images; an environment whose library has to be installed first."""

EPISODES, _SEED = 20, 800_000_000


@dataclass(frozen=True)
class Comparison:
    """What both found on an environment: mean returns, and the seconds that each had."""

    environment: str
    random: float | None
    reference: float
    solve: float
    kept: str
    is_solved: bool | None
    seconds: float
    ppo: float
    ppo_steps: int


def compare(target: str, folder: Path, hours: float) -> Comparison:
    """Solve an environment, then train PPO for as long."""
    from ldm_hf.policy_search import solve

    remove(folder)
    start = time.monotonic()
    found = solve(target, folder / "solve", hours=hours, jobs=1, say=lambda line: print(line, flush=True))
    seconds = time.monotonic() - start
    ppo, steps = _ppo(found.environment, seconds)
    reference, kept = float(np.mean(found.reference)), float(np.mean(found.returns))
    return Comparison(
        found.environment, found.random, reference, kept, found.best, found.solved, round(seconds), ppo, steps
    )


def _ppo(environment: str, seconds: float) -> tuple[float, int]:
    """The mean return of PPO after some seconds, and the steps that it made in them."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback

    from ldm_hf.dataset_builder.anchors.playing import play
    from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
    from ldm_hf.env_registry.registry import make_vec

    class UntilTimeIsUp(BaseCallback):
        def _on_step(self) -> bool:
            return time.monotonic() < end

    torch.set_num_threads(1)
    with contextlib.closing(make_vec(environment, 1, autoreset_mode="SameStep")) as envs:
        learner = PPO("MlpPolicy", Sb3VecEnv(envs), device="cpu", seed=0)
        end = time.monotonic() + seconds
        learner.learn(10**9, callback=UntilTimeIsUp())
        steps = learner.num_timesteps
    with contextlib.closing(make_vec(environment, 5, autoreset_mode="SameStep")) as envs:
        chosen = play(envs, lambda given, _: lambda seen: learner.predict(seen, deterministic=True)[0], EPISODES, _SEED)
    return float(np.mean(chosen.returns)), steps


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--hours", type=float, default=0.25, help="Of ldm solve, for each.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    output = options.output.absolute()
    os.environ.update(LDM_HOME=str(output / "home"), OMP_NUM_THREADS="1")
    found = []
    for target in options.targets:
        record = output / f"{target.replace('/', '--')}.json"
        if not record.exists():
            made = compare(target, output / target.replace("/", "--"), options.hours)
            with replacing(record) as temporary:
                temporary.write_text(json.dumps(asdict(made)), encoding="utf-8")
        found.append(Comparison(**json.loads(record.read_text(encoding="utf-8"))))
    columns = [
        "environment",
        "random",
        "reference",
        "solve keeps",
        "of it",
        "solved",
        "minutes",
        "PPO alone",
        "its steps",
    ]
    rows = [
        [
            one.environment,
            "—" if one.random is None else f"{one.random:.4g}",
            f"{one.reference:.4g}",
            f"{one.solve:.4g}",
            one.kept,
            {True: "yes", False: "no", None: "—"}[one.is_solved],
            f"{one.seconds / 60:.0f}",
            f"{one.ppo:.4g}",
            f"{one.ppo_steps:,}",
        ]
        for one in found
    ]
    print_table("mean returns of deterministic episodes, one core", columns, rows)
    write_json(options.json, {one.environment: asdict(one) for one in found})


if __name__ == "__main__":
    main()
