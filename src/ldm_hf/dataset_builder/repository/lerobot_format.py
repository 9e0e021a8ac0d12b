"""LeRobot's datasets, version 3.0: the files that both directions of the conversion know."""

from typing import Any

VERSION = "v3.0"
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

STATE, IMAGE, ACTION = "observation.state", "observation.image", "action"
REWARD, DONE, TRUNCATED, SUCCESS = "next.reward", "next.done", "next.truncated", "next.success"
REFERENCE = "reference_action"
"""Labels, where they are not the actions that were taken."""

FINALS = "meta/final_observations.parquet"
"""What episodes led to, which LeRobot itself does not keep: ``episode_index``, ``state``, ``image`` (PNG)."""

INDICES = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def vector(size: int, names: list[str] | None = None, dtype: str = "float32") -> dict[str, Any]:
    """A feature of ``size`` numbers, as ``info.json`` describes it."""
    return {"dtype": dtype, "shape": [size], "names": names}


def pixels(size: int) -> dict[str, Any]:
    """A feature of square images, ``size`` pixels a side."""
    return {"dtype": "image", "shape": [size, size, 3], "names": ["height", "width", "channel"]}
