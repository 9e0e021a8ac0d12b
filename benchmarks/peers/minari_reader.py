"""Make a seeded random Minari dataset, or time reading random windows of it through Minari's public API."""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

STEPS = 1000  # transitions of an episode
KEYS = ("observations", "actions", "rewards", "terminations", "truncations")


def episodes(args: argparse.Namespace) -> Iterator[dict[str, np.ndarray]]:
    """Yield the seeded episodes; peer_lerobot.py draws the same numbers (but cannot store the last observation)."""
    generator = np.random.default_rng(0)
    for _ in range(max(1, args.transitions // STEPS)):
        observations: np.ndarray
        if args.images:
            observations = generator.integers(0, 256, (STEPS + 1, 64, 64, 3), dtype=np.uint8)
        else:
            observations = generator.standard_normal((STEPS + 1, args.observation_size), dtype=np.float32)
        yield {
            "observations": observations,
            "actions": generator.random((STEPS, args.action_size), dtype=np.float32) * 2 - 1,
            "rewards": generator.standard_normal(STEPS, dtype=np.float32),
            "terminations": np.zeros(STEPS, dtype=bool),
            "truncations": np.arange(STEPS) == STEPS - 1,
        }


def make(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Write the dataset in one call and report how long that took and how large it became."""
    vectors: gym.Space[Any] = gym.spaces.Box(-np.inf, np.inf, (args.observation_size,), np.float32)
    images: gym.Space[Any] = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    start = time.perf_counter()
    dataset = minari.create_dataset_from_buffers(
        name,
        [EpisodeBuffer(**episode) for episode in episodes(args)],  # arrays are accepted where lists are annotated
        observation_space=images if args.images else vectors,
        action_space=gym.spaces.Box(-1, 1, (args.action_size,), np.float32),
        data_format=args.format,
        jpeg_encoding=not args.raw,  # JPEG (lossy) is Minari's default for images; --raw keeps the bytes
    )
    seconds = time.perf_counter() - start
    return {"made": name, "transitions": dataset.total_steps, "seconds": seconds, "mb": dataset.storage.get_size()}


def windows(dataset: minari.MinariDataset, args: argparse.Namespace) -> Iterator[dict[str, np.ndarray]]:
    """Yield random windows; no public call reads a part of an episode, so each one costs a whole episode."""
    generator = np.random.default_rng(0)
    picks = (int(generator.choice(dataset.episode_indices)) for _ in itertools.count())
    if args.preload:
        held = {episode.id: episode for episode in dataset.iterate_episodes()}
        source: Iterator[minari.EpisodeData] = (held[pick] for pick in picks)
    elif args.format == "hdf5":
        source = dataset.iterate_episodes(picks)  # lazy: an endless iterable keeps the one file open
    else:  # Arrow and Parquet go over the indices twice, so they need a list
        lists = (list(itertools.islice(picks, args.batch)) for _ in itertools.count())
        source = (episode for some in lists for episode in dataset.iterate_episodes(some))
    for episode in source:
        start = int(generator.integers(0, len(episode) - args.context + 1))
        yield {key: getattr(episode, key)[start : start + args.context] for key in KEYS}


def read(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Count the transitions of the batches stacked within the given seconds."""
    dataset = minari.load_dataset(name)
    source = windows(dataset, args)

    def batch() -> dict[str, np.ndarray]:
        parts = list(itertools.islice(source, args.batch))
        return {key: np.stack([part[key] for part in parts]) for key in KEYS}

    first = batch()
    run(batch, args.seconds / 10)  # warm-up
    count, seconds, cpu = run(batch, args.seconds)
    return {
        "transitions_per_second": count * args.batch * args.context / seconds,
        "peer": f"minari {minari.__version__} {name}{' preloaded' if args.preload else ''}",
        "batches": count,
        "cores": round(cpu / seconds, 2),
        "shapes": {key: [*value.shape, str(value.dtype)] for key, value in first.items()},
    }


def run(batch: Callable[[], Any], limit: float) -> tuple[int, float, float]:
    """Call until the limit; return the calls made, the wall seconds and the processor seconds."""
    count, start, cpu = 0, time.perf_counter(), time.process_time()
    while not count or time.perf_counter() - start < limit:
        batch()
        count += 1
    return count, time.perf_counter() - start, time.process_time() - cpu


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"transitions": 50_000, "observation-size": 17, "action-size": 6, "context": 256, "batch": 16}
    for flag, size in sizes.items():
        parser.add_argument(f"--{flag}", type=int, default=size)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--format", choices=("hdf5", "arrow", "parquet"), default="hdf5")
    for flag in ("make", "read"):
        parser.add_argument(f"--{flag}", metavar="FOLDER")
    for flag in ("images", "raw", "preload"):
        parser.add_argument(f"--{flag}", action="store_true")
    arguments = parser.parse_args()
    kind = ("image-raw" if arguments.raw else "image-jpeg") if arguments.images else "vector"
    for action, folder in ((make, arguments.make), (read, arguments.read)):
        if folder:
            os.environ["MINARI_DATASETS_PATH"] = str(Path(folder).resolve())
            print(json.dumps(action(arguments, f"{kind}-{arguments.format}-v0"), default=float))
