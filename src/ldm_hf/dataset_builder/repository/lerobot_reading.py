"""From LeRobot's datasets, version 3.0: episodes of frames become a run of an environment."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm_hf.dataset_builder.curves import LearningCurve, Sample
from ldm_hf.dataset_builder.format.records import RunRecord, package_versions
from ldm_hf.dataset_builder.format.schema import RunInfo
from ldm_hf.dataset_builder.repository import lerobot_format as lerobot
from ldm_hf.dataset_builder.repository.conversion import LastObservation, Progress, write_episodes
from ldm_hf.env_registry.registry import spec
from ldm_hf.errors import DatasetFormatError
from ldm_hf.modeling.spaces_ldm import SlotLayout, Transitions
from ldm_hf.utils.dependencies import require


def from_lerobot(
    source: Path,
    root: Path,
    *,
    environment: str | None = None,
    progress: Progress = lambda done, total: None,
) -> RunRecord:
    """Convert a LeRobot dataset of version 3.0 to a run of an environment, and describe its library again.

    Its numbers must be the slots of the environment: as many of ``observation.state``, of ``action``, and an image where the
    environment has one. Labels are the actions that were taken, unless it came from ``to_lerobot``. Where the dataset does
    not say what an episode led to, the last observation of the episode stands for it. An episode counts as truncated where
    ``next.truncated`` says so or nothing says how it ended, and rewards are 0 where there are none.

    Args:
        source: folder of the dataset.
        root: data folder.
        environment: id of the environment; by default the one that ``to_lerobot`` named.
        progress: told how much is done.

    Raises:
        DatasetFormatError: it is not such a dataset, or its numbers are not those of the environment.
        ConfigError: it does not name its environment, and nor does the caller.
        UnknownEnvironmentError: there is no such environment.
        StorageError: the disk is full.
    """
    require("the conversion of LeRobot's datasets", "data")
    described = _described(source)
    name = environment or described.get("ldm", {}).get("environment")
    if name is None:
        raise DatasetFormatError(f"{source} does not say which environment it is of: name it by --environment")
    known = spec(name)
    layouts = SlotLayout.of(known.observation_space), SlotLayout.of(known.action_space, role="action")
    episodes = _Episodes(source, described, *layouts)
    returns, lengths = episodes.measure(progress)
    ours = described.get("ldm", {})
    curve = LearningCurve.of(returns, np.cumsum([0, *lengths[:-1]]), least=1)
    if "first10" in ours:
        first, last = (Sample(float(ours[key]), 0.0, 1) for key in ("first10", "last10"))
        curve = LearningCurve(first, last, curve.transitions, curve.returns)
    run = f"lerobot-{source.resolve().name}"
    info = RunInfo(
        environment=name,
        run=run,
        observation_space=known.observation_space,
        action_space=known.action_space,
        curve=curve,
        deterministic_returns=returns,
        num_episodes=len(returns),
        num_transitions=sum(lengths),
        num_streams=1,
        training_steps=None,
        algorithm=str(ours.get("algorithm", "unknown")),
        hyperparameters={},
        source=f"LeRobot dataset {source.resolve().name}; labels are the recorded actions unless it says otherwise",
        seed=0,
        max_episode_steps=None,
        seeding=None,
        library_version=None,
        licence=str(ours.get("licence", "unknown")),
        provenance={"provider": "lerobot", "version": described["codebase_version"]},
        packages=package_versions(),
    )
    return write_episodes(root, info, iter(episodes))


def _described(source: Path) -> dict[str, Any]:
    """``info.json`` of a dataset."""
    try:
        described: dict[str, Any] = json.loads((source / lerobot.INFO).read_text(encoding="utf-8"))
        version, features = str(described["codebase_version"]), described["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DatasetFormatError(f"{source} is not a LeRobot dataset: {lerobot.INFO}: {reason}") from error
    if version.partition(".")[0] != lerobot.VERSION.partition(".")[0]:
        raise DatasetFormatError(
            f"{source} has version {version} of LeRobot's format, and {lerobot.VERSION} is read: convert it by "
            "lerobot.datasets.v30.convert_dataset_v21_to_v30 first"
        )
    if videos := [name for name, feature in features.items() if feature.get("dtype") == "video"]:
        raise DatasetFormatError(f"{source} holds videos ({', '.join(videos)}), which are not read: images are")
    return described


class _Episodes:
    """The episodes of a dataset as slots."""

    def __init__(self, source: Path, described: dict[str, Any], observed: SlotLayout, acted: SlotLayout) -> None:
        self._source, self._features = source, described["features"]
        self._total = int(described.get("total_episodes", 0))
        self._observed, self._acted = observed, acted
        self._images = [name for name, feature in self._features.items() if feature["dtype"] == "image"]
        self._finals = _finals(source)
        for name, layout in ((lerobot.STATE, observed), (lerobot.ACTION, acted)):
            found = int(np.prod(self._features.get(name, {}).get("shape", [0])))
            if found != layout.num_slots:
                raise DatasetFormatError(
                    f"{source}: {name} has {found} numbers, and the environment's space takes {layout.num_slots}"
                )
        if len(self._images) != (observed.image is not None):
            wanted = "one image" if observed.image is not None else "no image"
            raise DatasetFormatError(
                f"{source}: it has {len(self._images)} images, and the environment's observations have {wanted}"
            )

    def measure(self, progress: Progress) -> tuple[list[float], list[int]]:
        """Return and length of each episode."""
        returns, lengths = [], []
        for table in self._tables([lerobot.REWARD] if lerobot.REWARD in self._features else []):
            rewards = _numbers(table, lerobot.REWARD, 1)[:, 0] if lerobot.REWARD in self._features else np.zeros(1)
            returns.append(float(rewards.astype(np.float64).sum()))
            lengths.append(len(table))
            progress(len(lengths), self._total)
        if not lengths:
            raise DatasetFormatError(f"{self._source} has no episodes")
        return returns, lengths

    def __iter__(self) -> Iterator[tuple[Transitions, LastObservation]]:
        """Transitions of each episode, and what it led to."""
        for table in self._tables([name for name in self._features if name not in lerobot.INDICES]):
            steps = len(table)
            slots = _numbers(table, lerobot.STATE, self._observed.num_slots)
            images = _images(table, self._images[0], self._observed.image_size) if self._images else None
            actions = _numbers(table, lerobot.ACTION, self._acted.num_slots)
            labels = actions
            if lerobot.REFERENCE in self._features:
                labels = _numbers(table, lerobot.REFERENCE, self._acted.num_slots)
            done, truncated = np.zeros(steps, bool), np.zeros(steps, bool)
            if lerobot.DONE in self._features:
                done = _numbers(table, lerobot.DONE, 1)[:, 0].astype(bool)
            if lerobot.TRUNCATED in self._features:
                truncated = _numbers(table, lerobot.TRUNCATED, 1)[:, 0].astype(bool)
            truncated[-1] |= not done[-1]
            rewards = _numbers(table, lerobot.REWARD, 1)[:, 0] if lerobot.REWARD in self._features else np.zeros(steps)
            last: LastObservation = slots[-1:], None if images is None else images[-1:]
            if (final := self._finals.get(table["episode_index"][0].as_py())) is not None:
                shown = None if images is None else _decoded([final["image"]], self._observed.image_size)
                last = np.array([final["state"]], np.float32).reshape(1, -1), shown
            transitions = Transitions(
                slots, images, actions, rewards.astype(np.float32), done & ~truncated, truncated, labels
            )
            yield transitions, last

    def _tables(self, columns: list[str]) -> Iterator[Any]:
        """A table for each episode, in order, as the Parquet files have them; a file is in memory at a time."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        for path in sorted(self._source.glob("data/*/*.parquet")):
            try:
                table = pq.read_table(path, columns=[*columns, "episode_index", "frame_index"])
            except (OSError, pa.ArrowException) as error:
                reason = " ".join(str(error).split())
                raise DatasetFormatError(f"{path} cannot be read as data of LeRobot: {reason}") from error
            for number in pc.unique(table["episode_index"]).to_pylist():
                episode = table.filter(pc.equal(table["episode_index"], number))
                yield episode.sort_by("frame_index")


def _numbers(table: Any, name: str, width: int) -> np.ndarray:
    """A column as float32 of shape (T, width)."""
    if not width:
        return np.zeros((len(table), 0), np.float32)
    column = table[name].combine_chunks()
    flat = column.flatten() if hasattr(column, "flatten") and column.type.num_fields else column
    return np.asarray(flat.to_numpy(zero_copy_only=False), np.float32).reshape(len(table), width)


def _images(table: Any, name: str, size: int) -> np.ndarray:
    """A column of encoded images as uint8 of shape (T, size, size, 3)."""
    return _decoded([cell["bytes"] for cell in table[name].to_pylist()], size)


def _finals(source: Path) -> dict[int, dict[str, Any]]:
    """What episodes led to, by their numbers; empty where the dataset does not say."""
    import pyarrow.parquet as pq

    path = source / lerobot.FINALS
    return {row["episode_index"]: row for row in pq.read_table(path).to_pylist()} if path.is_file() else {}


def _decoded(encoded: Sequence[bytes], size: int) -> np.ndarray:
    from PIL import Image

    found = []
    for content in encoded:
        with Image.open(io.BytesIO(content)) as image:
            found.append(np.asarray(image.convert("RGB").resize((size, size))))
    return np.stack(found)
