"""Make a seeded random LeRobot dataset, or time reading random windows of it through a torch DataLoader."""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
STEPS = 1000  # transitions of an episode
FPS = 50
if torch.version.cuda is None:  # the index's torchvision is a CUDA build, whose import needs these two names
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")


def episodes(args: argparse.Namespace) -> Iterator[dict[str, np.ndarray]]:
    """Yield the seeded episodes of peer_minari.py without their last observation, for which LeRobot has no place."""
    generator = np.random.default_rng(0)
    for _ in range(max(1, args.transitions // STEPS)):
        observations: np.ndarray
        if args.images:
            observations = generator.integers(0, 256, (STEPS + 1, 64, 64, 3), dtype=np.uint8)
        else:
            observations = generator.standard_normal((STEPS + 1, args.observation_size), dtype=np.float32)
        yield {
            "observation.image" if args.images else "observation.state": observations[:-1],
            "action": generator.random((STEPS, args.action_size), dtype=np.float32) * 2 - 1,
            "next.reward": generator.standard_normal((STEPS, 1), dtype=np.float32),
            "next.done": np.zeros((STEPS, 1), dtype=bool),
            "next.truncated": np.arange(STEPS)[:, None] == STEPS - 1,
        }


def make(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Write the dataset frame by frame and report how long that took and how large it became."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features: dict[str, dict[str, Any]] = {}
    for key, value in next(episodes(args)).items():
        features[key] = {"dtype": str(value.dtype), "shape": value.shape[1:], "names": None}
    if args.images:
        features["observation.image"].update(dtype=args.images, names=["height", "width", "channels"])
    start = time.perf_counter()
    dataset = LeRobotDataset.create("peer/bench", FPS, features, root=root, use_videos=args.images == "video")
    for episode in episodes(args):
        for step in range(STEPS):
            dataset.add_frame({"task": "bench", **{key: value[step] for key, value in episode.items()}})
        dataset.save_episode()
    dataset.finalize()
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 1e6
    return {"made": root.name, "transitions": dataset.meta.total_frames, "seconds": seconds, "mb": size}


def read(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Count the transitions of the batches loaded within the given seconds."""
    import datasets
    from lerobot import __version__
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.datasets.sampler import EpisodeAwareSampler

    steps = [step / FPS for step in range(args.context)]
    keys = list(next(episodes(args)))
    dataset = LeRobotDataset("peer/bench", root=root, delta_timestamps=dict.fromkeys(keys, steps))
    table = dataset.meta.episodes
    sampler = EpisodeAwareSampler(
        table["dataset_from_index"], table["dataset_to_index"], drop_n_last_frames=args.context - 1, shuffle=True
    )
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(dataset, args.batch, sampler=sampler, num_workers=0, drop_last=True)
    source = itertools.chain.from_iterable(loader for _ in itertools.count())

    def batch() -> dict[str, np.ndarray]:
        item = next(source)
        return {key: item[key].numpy() for key in keys}

    first = batch()
    run(batch, args.seconds / 10)  # warm-up
    count, seconds, cpu = run(batch, args.seconds)
    return {
        "transitions_per_second": count * args.batch * args.context / seconds,
        "peer": f"lerobot {__version__} {root.name} (datasets {datasets.__version__}, {dataset.video_backend})",
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
    parser.add_argument("--images", nargs="?", const="image", choices=("image", "video"))
    for flag in ("make", "read"):
        parser.add_argument(f"--{flag}", metavar="FOLDER")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for action, folder in ((make, arguments.make), (read, arguments.read)):
        if folder:
            os.environ["HF_HOME"] = str(Path(folder, "hf-home").resolve())  # datasets' Arrow copy goes there
            print(json.dumps(action(arguments, Path(folder) / (arguments.images or "vector"))))
