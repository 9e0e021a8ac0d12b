"""To LeRobot's datasets, version 3.0: a run becomes episodes of frames, in Parquet files that its loader reads."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.dataset_builder.repository import lerobot_format as lerobot
from ldm_hf.dataset_builder.repository.conversion import Progress, episodes_in_time, kept_run
from ldm_hf.errors import ConfigError
from ldm_hf.modeling.spaces_ldm import SlotLayout, Transitions
from ldm_hf.utils.dependencies import require
from ldm_hf.utils.files import replacing

FRAMES_PER_SECOND = 30
_FILE_BYTES = 100 * 2**20
_MOST_FILES = 1000  # of a folder


def to_lerobot(
    root: Path,
    environment: str,
    folder: Path,
    *,
    run: str | None = None,
    fps: int = FRAMES_PER_SECOND,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Convert a run to a LeRobot dataset of version 3.0, which ``LeRobotDataset(NAME, root=folder)`` reads.

    Observations and actions are slots, as a model reads them: numbers, and symbols counted from 0. Labels are the feature
    ``reference_action``. What episodes led to is in ``meta/final_observations.parquet``, of which LeRobot knows nothing.
    Images are PNG of 64 x 64 pixels and not video, which would change them.

    Args:
        root: data folder.
        environment: id of the environment, which is the dataset's task.
        folder: of the new dataset.
        run: name of the run; by default the one with the highest returns.
        fps: frames per second that timestamps pretend.
        progress: told how much is done.

    Raises:
        ConfigError: the folder is there already.
        UnknownEnvironmentError, DatasetFormatError: there is no such run, or it is damaged.
        StorageError: the disk is full.
    """
    require("the conversion to LeRobot's datasets", "data")
    data = kept_run(root, environment, run)
    if folder.exists():
        raise ConfigError(f"{folder} is there already: choose another folder for the LeRobot dataset")
    with replacing(folder) as made:
        _Writer(data, made, fps).write(progress)
    return folder


class _Writer:
    """Writes the files of one dataset."""

    def __init__(self, data: EnvironmentDataset, folder: Path, fps: int) -> None:
        import datasets

        self._data, self._folder, self._fps = data, folder, fps
        self._observation = SlotLayout.of(data.observation_space)
        self._action = SlotLayout.of(data.action_space, role="action")
        self.features = self._described()
        known = {name: _column(feature) for name, feature in self.features.items()}
        self._schema = datasets.Features(known).arrow_schema
        self._stats: dict[str, list[dict[str, Any]]] = {}
        self._finals: list[dict[str, Any]] = []

    def write(self, progress: Progress) -> None:
        """Write everything."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows, file, size, writer = [], 0, 0, None
        first = 0
        try:
            for number, table in enumerate(self._tables()):
                if writer is None or size > _FILE_BYTES:
                    if writer is not None:
                        writer.close()
                        file, size = file + 1, 0
                    path = self._folder / lerobot.DATA.format(**_place(file))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    writer = pq.ParquetWriter(path, self._schema, compression="zstd")
                writer.write_table(table)
                size += table.nbytes
                rows.append(self._episode(number, len(table), first, file))
                first += len(table)
                progress(number + 1, self._data.info.num_episodes)
        finally:
            if writer is not None:
                writer.close()
        path = self._folder / lerobot.EPISODES.format(**_place(0))
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        kinds = {"episode_index": pa.int64(), "state": pa.list_(pa.float32()), "image": pa.binary()}
        pq.write_table(pa.Table.from_pylist(self._finals, pa.schema(kinds)), self._folder / lerobot.FINALS)
        self._write_meta(rows, first)

    def _tables(self) -> Iterator[Any]:
        """A table for each episode."""
        import pyarrow as pa

        terminals = self._data.terminals()
        places, index = terminals.rows(), 0
        for number, (episode, place) in enumerate(episodes_in_time(self._data)):
            row = None if place is None else places.get(place)
            steps = len(episode)
            columns = self._columns(episode)
            if row is not None:
                image = None if terminals.images is None else _png(terminals.images[row])
                state = terminals.observations[row].tolist()
                self._finals.append({"episode_index": number, "state": state, "image": image})
            frames = np.arange(steps)
            columns |= {"timestamp": (frames / self._fps).astype(np.float32), "frame_index": frames}
            columns |= {"episode_index": np.full(steps, number), "index": index + frames, "task_index": 0 * frames}
            self._measure(columns)
            arrays = [_arrow(columns[name], self._schema.field(name).type) for name in self._schema.names]
            yield pa.Table.from_arrays(arrays, schema=self._schema)
            index += steps

    def _columns(self, episode: Transitions) -> dict[str, np.ndarray]:
        """The features of an episode's rows; an episode that nothing ended is truncated."""
        terminated, truncated = episode.terminated.copy(), episode.truncated.copy()
        truncated[-1] |= not terminated[-1]
        assert episode.reference_actions is not None
        columns: dict[str, Any] = {
            lerobot.STATE: episode.observations,
            lerobot.IMAGE: episode.images,
            lerobot.ACTION: episode.actions,
            lerobot.REFERENCE: episode.reference_actions,
            lerobot.REWARD: episode.rewards,
            lerobot.DONE: terminated | truncated,
            lerobot.TRUNCATED: truncated,
        }
        return {name: values for name, values in columns.items() if name in self.features}

    def _described(self) -> dict[str, dict[str, Any]]:
        """The features as ``info.json`` has them."""
        features: dict[str, dict[str, Any]] = {}
        if slots := self._observation.num_slots:
            features[lerobot.STATE] = lerobot.vector(slots, _names(self._observation))
        if self._observation.image is not None:
            features[lerobot.IMAGE] = lerobot.pixels(self._observation.image_size)
        for name in (lerobot.ACTION, lerobot.REFERENCE):
            features[name] = lerobot.vector(self._action.num_slots, _names(self._action))
        features[lerobot.REWARD] = lerobot.vector(1)
        for name in (lerobot.DONE, lerobot.TRUNCATED):
            features[name] = lerobot.vector(1, dtype="bool")
        features["timestamp"] = lerobot.vector(1)
        for name in lerobot.INDICES[1:]:
            features[name] = lerobot.vector(1, dtype="int64")
        return features

    def _measure(self, columns: dict[str, np.ndarray]) -> None:
        """Remember what an episode adds to the statistics."""
        for name, values in columns.items():
            numbers = values.astype(np.float64)
            axes: tuple[int, ...] = (0,)
            if values.ndim == 4:
                numbers, axes = numbers / 255, (0, 1, 2)
            finite = np.where(np.isfinite(numbers), numbers, 0)
            self._stats.setdefault(name, []).append(
                {
                    "min": finite.min(axes),
                    "max": finite.max(axes),
                    "sum": finite.sum(axes),
                    "squares": np.square(finite).sum(axes),
                    "size": int(np.prod([values.shape[axis] for axis in axes])),
                    "count": len(values),
                }
            )

    def _episode(self, number: int, length: int, first: int, file: int) -> dict[str, Any]:
        """The row of an episode in ``meta/episodes``."""
        place, meta = _place(file), _place(0)
        row: dict[str, Any] = {"episode_index": number, "tasks": [self._data.environment], "length": length}
        row |= {f"data/{key}": value for key, value in place.items()}
        row |= {"dataset_from_index": first, "dataset_to_index": first + length}
        row |= {f"meta/episodes/{key}": value for key, value in meta.items()}
        for name, parts in self._stats.items():
            image = self.features[name]["dtype"] == "image"
            row |= {f"stats/{name}/{key}": value for key, value in _statistics(parts[-1:], image).items()}
        return row

    def _write_meta(self, rows: list[dict[str, Any]], frames: int) -> None:
        import pandas as pd

        info, data = self._data.info, self._data
        described = {
            "codebase_version": lerobot.VERSION,
            "robot_type": None,
            "total_episodes": len(rows),
            "total_frames": frames,
            "total_tasks": 1,
            "chunks_size": _MOST_FILES,
            "data_files_size_in_mb": _FILE_BYTES // 2**20,
            "video_files_size_in_mb": 200,
            "fps": self._fps,
            "splits": {"train": f"0:{len(rows)}"},
            "data_path": lerobot.DATA,
            "video_path": None,
            "features": self.features,
            "ldm": {"environment": data.environment, "run": info.run, "algorithm": info.algorithm}
            | {"first10": info.first10, "last10": info.last10, "seed": info.seed, "licence": info.licence},
        }
        (self._folder / lerobot.INFO).write_text(json.dumps(described, indent=4))
        stats = {
            name: _statistics(parts, self.features[name]["dtype"] == "image") for name, parts in self._stats.items()
        }
        (self._folder / lerobot.STATS).write_text(json.dumps(stats, indent=4))
        tasks = pd.DataFrame({"task_index": [0]}, index=pd.Index([data.environment], name="task"))
        tasks.to_parquet(self._folder / lerobot.TASKS)


def _statistics(parts: list[dict[str, Any]], image: bool) -> dict[str, Any]:
    """Of a feature over some episodes: lists of its shape; those of images are (3, 1, 1), of values from 0 to 1."""
    size = sum(part["size"] for part in parts)
    mean = sum(part["sum"] for part in parts) / size
    variance = np.maximum(sum(part["squares"] for part in parts) / size - np.square(mean), 0)
    found = {
        "min": np.min([part["min"] for part in parts], 0),
        "max": np.max([part["max"] for part in parts], 0),
        "mean": mean,
        "std": np.sqrt(variance),
    }
    shaped = {
        key: np.atleast_1d(value).reshape(3, 1, 1) if image else np.atleast_1d(value) for key, value in found.items()
    }
    return {key: value.tolist() for key, value in shaped.items()} | {"count": [sum(part["count"] for part in parts)]}


def _column(feature: dict[str, Any]) -> Any:
    """A feature as ``datasets`` has it."""
    import datasets

    if feature["dtype"] == "image":
        return datasets.Image()
    value = datasets.Value(feature["dtype"])
    return value if feature["shape"] == [1] else datasets.Sequence(value, length=feature["shape"][0])


def _arrow(values: np.ndarray, kind: Any) -> Any:
    """A column of an episode as Arrow has it."""
    import pyarrow as pa

    if values.ndim == 4:
        return pa.array([{"bytes": _png(image), "path": None} for image in values], kind)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    return pa.array(list(values) if values.ndim == 2 else values, kind)


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def _names(layout: SlotLayout) -> list[str]:
    """A name for each slot: where it is found in a value of the space."""
    names = []
    for leaf in layout.leaves:
        name = leaf.name.removeprefix("space") or "value"
        names += [name] if leaf.num_slots == 1 else [f"{name}[{slot}]" for slot in range(leaf.num_slots)]
    return names


def _place(file: int) -> dict[str, int]:
    return {"chunk_index": file // _MOST_FILES, "file_index": file % _MOST_FILES}
