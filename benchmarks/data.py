"""Recording, relabelling, reading and building: what each costs, beside Minari's and LeRobot's readers on the same data.

python benchmarks/data.py --json figures.json [--lerobot LEROBOT_VENV/bin/python]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from harness import keep_memory, ratio, take_turns
from step_costs import Noise

from ldm_hf.dataset_builder.build.jobs import Job
from ldm_hf.dataset_builder.curves import LearningCurve
from ldm_hf.dataset_builder.format.reader import EnvironmentDataset, open_dataset
from ldm_hf.dataset_builder.format.schema import RunInfo
from ldm_hf.dataset_builder.format.writer import ChunkRange, plan_chunks, write_dataset
from ldm_hf.dataset_builder.reference.candidates import Candidate, pool
from ldm_hf.dataset_builder.reference.policy import ReferencePolicy, train_policy
from ldm_hf.dataset_builder.reference.recorder import Recorder
from ldm_hf.dataset_builder.reference.recording import Recording
from ldm_hf.dataset_builder.reference.request import RunRequest
from ldm_hf.dataset_builder.reference.rows import RecordedRows
from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
from ldm_hf.env_registry.registry import make_vec
from ldm_hf.executors.local import LocalExecutor
from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.modeling import LDMProcessor
from ldm_hf.modeling.spaces_ldm import SlotLayout, Transitions, space_to_json
from ldm_hf.training.chunk_cache import ChunkCache
from ldm_hf.training.mixture import Mixture

OBSERVATIONS, ACTIONS, EPISODE = 17, 6, 1000
PEERS = Path(__file__).parent / "peers"


def recording(rounds: int, folder: Path) -> dict[str, float]:
    """Training with and without the recorder."""
    figures = {}
    kinds: dict[str, tuple[Candidate, Callable[[], VectorEnv], int]] = {
        "cartpole_ppo": (
            pool()["PPO-short-rollouts"],
            lambda: make_vec("gymnasium/CartPole-v1", 8, autoreset_mode="SameStep"),
            24_576,
        ),
        "images_a2c": (pool()["A2C-images"], lambda: _noise(16), 8000),
    }
    for name, (candidate, make, steps) in kinds.items():

        def train(recorded: bool, candidate: Candidate = candidate, make: Callable = make, steps: int = steps) -> float:
            envs = make()
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                if recorded:
                    rows = steps // candidate.num_envs
                    envs = Recorder(envs, rows, 0, Recording(Path(scratch) / "recording", rows, envs))
                start = time.perf_counter()
                train_policy(Sb3VecEnv(envs), candidate, timesteps=steps, seed=0, progress=lambda done: None)
                return steps / (time.perf_counter() - start)

        contenders = {"bare": lambda _: train(False), "recorded": lambda _: train(True)}
        rates = take_turns(contenders, rounds, 1.0)
        low, middle, high = ratio(rates, "bare", "recorded")
        figures[f"recording_{name}_time_ratio"] = middle
        row = [f"{middle - 1:+.1%}", f"{low:.3f}", f"{middle:.3f}", f"{high:.3f}"]
        print_table(f"Recording, {name}: time with / without", ["", "low", "median", "high"], [row])
    return figures


def relabelling(seconds: float, folder: Path) -> dict[str, float]:
    """Observations a second that final policies label and lay out, one core."""
    figures = {}
    for algorithm in ("PPO", "SAC"):
        envs = SyncVectorEnv([lambda: Noise(False, True)], autoreset_mode=AutoresetMode.SAME_STEP)
        record = Recording(folder / f"relabelling-{algorithm}", 8192, envs)
        recorder = Recorder(envs, 8192, 0, record)
        venv = Sb3VecEnv(envs)
        recorder.reset()
        for _ in range(8192):
            recorder.step(np.zeros((1, 4), np.float32))
        policy = train_policy(venv, pool()[algorithm], timesteps=200, seed=0, progress=lambda done: None)
        assert isinstance(policy, ReferencePolicy)
        layouts = SlotLayout.of(venv.observation_space), SlotLayout.of(venv.action_space, role="action")
        source = RecordedRows(record, *layouts, policy.act)
        figures[f"relabelling_{algorithm.lower()}_per_second"] = _rate(
            lambda source=source: len(source.transitions(ChunkRange(0, 0, 8192))), seconds
        )
    return figures


def reading(rounds: int, seconds: float, folder: Path, lerobot: Path | None, size: int) -> dict[str, float]:
    """Transitions a second into tokenised batches, one core, beside readers that give numpy or torch batches."""
    figures: dict[str, float] = {}
    for images in (False, True):
        kind = "image" if images else "vector"
        transitions = size * 2 // 5 if images else size
        dataset = dataset_of_noise(folder / kind, transitions, images)
        kept = Path(tempfile.mkdtemp(dir=folder))
        contenders: dict[str, Callable[[float], float]] = {
            "ldm_context_256": lambda limit, data=dataset: _batches(data, 256, 32, 32, limit),
            "ldm_context_2048": lambda limit, data=dataset: _batches(data, 2048, 4, 8, limit),
            "ldm_context_256_random": lambda limit, data=dataset: _batches(data, 256, 1, 16, limit),
            "ldm_context_256_random_cached": lambda limit, data=dataset, cache=kept: _batches(
                data, 256, 1, 16, limit, cache
            ),
            "minari_hdf5": _peer("minari_reader.py", sys.executable, folder, transitions, images, "--raw"),
            "minari_arrow": _peer(
                "minari_reader.py", sys.executable, folder, transitions, images, "--raw", "--format", "arrow"
            ),
        }
        if lerobot is not None:
            contenders["lerobot"] = _peer("lerobot_reader.py", lerobot, folder, transitions, images)
        rates = take_turns(contenders, rounds, seconds)
        rows = []
        for name, found in rates.items():
            figures[f"reading_{kind}_{name}_per_second"] = float(np.median(found))
            rows.append([name, f"{np.median(found):,.0f}", f"{ratio(rates, 'ldm_context_256', name)[1]:.1f}"])
        columns = ["reader", "transitions/s", "ldm_context_256 is so many times as fast"]
        print_table(f"Reading {transitions:,} {kind} transitions into batches", columns, rows)
    return figures


def executing(rounds: int, folder: Path, cores: int, transitions: int) -> dict[str, float]:
    """Parallel efficiency of the local executor: runs a second of a core with all cores busy, beside one that is busy."""
    executors = {"one": LocalExecutor(1), "all": LocalExecutor(cores)}
    request = RunRequest("gymnasium/CartPole-v1", pool()["PPO"], transitions, 0)
    job = Job(request, folder / "executing", True, 1.0, 2**20)

    def speed(name: str, processes: int) -> float:
        start = time.perf_counter()
        _run(executors[name], [job] * (2 * processes))
        return 2 / (time.perf_counter() - start)  # runs per second of each process

    try:
        # The first round, which is not counted, starts the processes and has them import what they need.
        rates = take_turns({"one": lambda _: speed("one", 1), "all": lambda _: speed("all", cores)}, rounds, 1.0)
    finally:
        for executor in executors.values():
            executor.close()
    low, middle, high = ratio(rates, "all", "one")
    row = [str(cores), f"{low:.2f}", f"{middle:.2f}", f"{high:.2f}"]
    print_table("Speed of a process with all cores busy / alone", ["cores", "low", "median", "high"], [row])
    return {"executor_efficiency": middle, "executor_cores": cores}


def _run(executor: LocalExecutor, jobs: list[Job]) -> None:
    waiting, ended = list(jobs), 0
    while ended < len(jobs):
        while waiting and executor.has_room(waiting[0]):
            executor.submit(waiting.pop(0))
        ended += len(executor.wait(5.0))
        executor.messages()


def _noise(number: int) -> VectorEnv:
    makers = [lambda: gymnasium.wrappers.TimeLimit(Noise(True, False), 1000)] * number
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def dataset_of_noise(folder: Path, transitions: int, images: bool) -> EnvironmentDataset:
    """The numbers that the peers' scripts draw, in our format: two files of four chunks each at least."""
    generator = np.random.default_rng(0)
    episodes = []
    for _ in range(max(1, transitions // EPISODE)):
        shape = (EPISODE + 1, 64, 64, 3)
        seen = generator.integers(0, 256, shape, np.uint8) if images else None
        vectors = None if images else generator.standard_normal((EPISODE + 1, OBSERVATIONS), dtype=np.float32)
        actions = generator.random((EPISODE, ACTIONS), dtype=np.float32) * 2 - 1
        rewards = generator.standard_normal(EPISODE, dtype=np.float32)
        ends = np.arange(EPISODE) == EPISODE - 1
        slots = np.empty((EPISODE, 0), np.float32) if vectors is None else vectors[:EPISODE]
        shown = None if seen is None else seen[:EPISODE]
        episodes.append(Transitions(slots, shown, actions, rewards, np.zeros(EPISODE, bool), ends, actions))
    whole = Transitions(
        **{
            name: None if value is None else np.concatenate([getattr(one, name) for one in episodes])
            for name, value in vars(episodes[0]).items()
        }
    )
    space = spaces.Box(0, 255, (64, 64, 3), np.uint8) if images else spaces.Box(-np.inf, np.inf, (OBSERVATIONS,))
    curve = LearningCurve.of(range(20), range(20))
    described = space_to_json(space), space_to_json(spaces.Box(-1, 1, (ACTIONS,)))
    info = RunInfo(
        *(
            "benchmark/Noise-v0",
            "run",
            *described,
            curve,
            [0.0],
            len(episodes),
            len(whole),
            1,
            None,
            "none",
            {},
            "",
            0,
            None,
            None,
        ),
        *(None, "", {}, {}),
    )
    folder.mkdir(parents=True)
    write_dataset(folder, info, plan_chunks([len(whole)], 0), lambda chunk: whole[chunk.start : chunk.stop])
    return open_dataset(folder)


def _batches(
    dataset: EnvironmentDataset, context: int, per_chunk: int, batch: int, seconds: float, cache: Path | None = None
) -> float:
    processor = LDMProcessor()
    # Without a cache every chunk is read and decoded whenever it is visited.
    mixture = Mixture([dataset], processor, context_length=context, sequences_per_chunk=per_chunk)
    if cache is not None:
        mixture.cache = ChunkCache(cache, 2**40)
    number = 0

    def one() -> int:
        nonlocal number
        found = processor.collate([mixture[index] for index in range(number, number + batch)])
        number += batch
        return int(found["previous_rewards"].numel())

    return _rate(one, seconds)


def _peer(
    script: str, python: str | Path, folder: Path, size: int, images: bool, *options: str
) -> Callable[[float], float]:
    place = folder / f"{script}-{images}-{'-'.join(options)}"
    chosen = [option for option in options if images or option != "--raw"]
    command = [str(python), str(PEERS / script), "--transitions", str(size), *chosen, *(["--images"] * images)]
    _json([*command, "--make", str(place)])

    def measure(seconds: float) -> float:
        return float(_json([*command, "--read", str(place), "--seconds", str(seconds)])["transitions_per_second"])

    return measure


def _json(command: list[str]) -> dict:
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _rate(work: Callable[[], int], seconds: float) -> float:
    work()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += work()
    return done / (time.perf_counter() - start)


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", help="relabelling, reading, recording or executing; default: all.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="Of one measurement.")
    parser.add_argument("--transitions", type=int, default=50_000, help="Of the dataset; two fifths as many images.")
    parser.add_argument("--lerobot", type=Path, help="Python of an installation that peers/lerobot.sh made.")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, rounds, seconds = Path(temporary), arguments.rounds, arguments.seconds
        parts: dict[str, Callable[[], dict[str, float]]] = {
            "relabelling": lambda: relabelling(seconds, folder),
            "reading": lambda: reading(rounds, seconds, folder, arguments.lerobot, arguments.transitions),
            "recording": lambda: recording(rounds, folder),
            "executing": lambda: executing(rounds, folder, arguments.cores, 20_000),
        }
        for name in arguments.part or parts:
            figures |= parts[name]()
    print_table("All figures", ["figure", "value"], [[name, f"{value:,.3f}"] for name, value in figures.items()])
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
