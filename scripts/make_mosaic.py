#!/usr/bin/env python
"""Make the mosaic of the README: one model acting in many environments, each in a tile, as one GIF.

    python scripts/make_mosaic.py pretrained/ldm-mini docs/results/mosaic.gif

Each environment is played once by ``ldm rollout --video`` in a process of its own; videos that are there are not made again.
An environment that cannot be drawn here is left out, and said.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw

ENVIRONMENTS = (
    *("gymnasium/LunarLander-v3", "minatar/MinAtar/Breakout-v1", "gymnasium/CartPole-v1", "metaworld/MT1/reach-v3"),
    *("gymnasium/Hopper-v5", "gymnasium-robotics/FetchReachDense-v4", "gymnasium/Pendulum-v1", "gymnasium/Taxi-v4"),
    *("minigrid/MiniGrid-Empty-5x5-v0", "gymnasium/Acrobot-v1", "minatar/MinAtar/Freeway-v1"),
    *("gymnasium/FrozenLake8x8-v1", "mo-gymnasium/deep-sea-treasure-v0"),
    *("gymnasium-robotics/PointMaze_UMazeDense-v3", "gymnasium/Reacher-v5", "gymnasium/CliffWalking-v1"),
)
COLUMNS, ROWS, TILE, GAP = 4, 3, 150, 4
FRAMES, MILLISECONDS = 80, 60


def film(model: str, environment: str, folder: Path) -> Path | None:
    """The video of an episode; None if there can be none here."""
    path = folder / f"{environment.replace('/', '_')}.mp4"
    if not path.is_file():
        command = [
            sys.executable,
            "-m",
            "ldm_hf",
            "rollout",
            model,
            environment,
            "--episodes",
            "1",
            "--video",
            str(path),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"left out: {environment}: {done.stderr.strip().splitlines()[-1][:200]}", file=sys.stderr)
            return None
    return path


def tiles(path: Path, name: str) -> list[Image.Image]:
    """``FRAMES`` squares of a video, evenly spread over at most 240 frames, and repeated where it is shorter."""
    frames = imageio.imread(path)[:240]
    chosen = [int(index) for index in np.linspace(0, len(frames) - 1, min(FRAMES, len(frames)))]
    made = []
    for index in range(FRAMES):
        image = Image.fromarray(frames[chosen[index % len(chosen)]])
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        method = Image.Resampling.NEAREST if side <= TILE else Image.Resampling.LANCZOS
        image = image.crop((left, top, left + side, top + side)).resize((TILE, TILE), method)
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, TILE - 13, TILE, TILE), fill=(20, 20, 20))
        draw.text((4, TILE - 12), name, fill=(255, 255, 255))
        made.append(image)
    return made


def main() -> None:
    """Film the environments, and put as many as there is room for into one GIF."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--videos", type=Path, default=Path("runs/mosaic"))
    arguments = parser.parse_args()
    arguments.videos.mkdir(parents=True, exist_ok=True)
    shown = []
    for environment in ENVIRONMENTS:
        if len(shown) < COLUMNS * ROWS and (path := film(arguments.model, environment, arguments.videos)):
            shown.append(tiles(path, environment.rpartition("/")[2]))
    size = COLUMNS * (TILE + GAP) - GAP, ROWS * (TILE + GAP) - GAP
    frames = []
    for index in range(FRAMES):
        frame = Image.new("RGB", size, (255, 255, 255))
        for place, images in enumerate(shown):
            row, column = divmod(place, COLUMNS)
            frame.paste(images[index], (column * (TILE + GAP), row * (TILE + GAP)))
        frames.append(frame.quantize(96))
    frames[0].save(
        arguments.output, save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0, optimize=True
    )
    print(f"{len(shown)} environments, {arguments.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
