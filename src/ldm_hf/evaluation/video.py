"""Videos of rollouts."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from ldm_hf.env_registry.worker.compatibility import frame
from ldm_hf.errors import ConfigError, EnvironmentFailure
from ldm_hf.utils.dependencies import require
from ldm_hf.utils.files import replacing

RENDER_MODE = "rgb_array"
_FRAMES_PER_SECOND = 30.0  # where the environment does not say


@contextlib.contextmanager
def recording_video(path: Path) -> Iterator[Callable[[gymnasium.Env], None]]:
    """Give a function that adds what an environment shows to a video; the file appears when the block succeeds.

    Args:
        path: of the video; its ending names the format: ``.mp4``, ``.gif``.

    Raises:
        MissingDependencyError: imageio is not installed.
        ConfigError: the ending names no such format.
        EnvironmentFailure: the environment shows nothing.
    """
    require("a video", "video")
    import imageio.v2 as imageio

    if path.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"the video {path} should end in .mp4 or .gif")
    writer: Any = None
    with replacing(path) as temporary:
        # The format goes by the ending of the name, which the temporary one has not got.
        target = temporary.with_name(temporary.name + path.suffix)

        def add(env: gymnasium.Env) -> None:
            nonlocal writer
            pixels = shown_frame(env)
            if writer is None:
                writer = imageio.get_writer(target, **_options(path.suffix, env))
            writer.append_data(pixels)

        try:
            yield add
            if writer is None:
                raise EnvironmentFailure("the environment showed nothing")
        finally:
            if writer is not None:
                writer.close()
        target.rename(temporary)


def _options(suffix: str, env: gymnasium.Env) -> dict[str, Any]:
    rate = float(env.metadata.get("render_fps") or _FRAMES_PER_SECOND)
    if suffix == ".gif":
        return {"duration": 1000 / rate, "loop": 0}
    return {"fps": rate, "codec": "libx264", "macro_block_size": 1, "ffmpeg_log_level": "error"}


def shown_frame(env: gymnasium.Env) -> np.ndarray:
    """What an environment shows, uint8 RGB, with even sides, which codecs want: the last row or column may be doubled.

    Raises:
        EnvironmentFailure: it shows nothing, or cannot.
    """
    try:
        shown = env.render()
    except Exception as error:  # Packages that draw are often missing, and every library says so in its own way.
        raise EnvironmentFailure(f"the environment cannot be shown: {' '.join(str(error).split())}") from error
    if not isinstance(shown, np.ndarray) or shown.ndim != 3:
        raise EnvironmentFailure(f"the environment shows no image as {RENDER_MODE!r}, but {type(shown).__name__}")
    pixels = frame(shown)
    return np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), "edge")
