"""The on-disk format, version 3: what a dataset file holds. ``docs/dataset_format.md`` is its specification."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ldm_hf.dataset_builder.anchors.assessment import Assessment
from ldm_hf.dataset_builder.curves import BY_END, LearningCurve
from ldm_hf.dataset_builder.format import image_column
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import DatasetFormatError
from ldm_hf.modeling.spaces_ldm import SlotLayout

SCHEMA_VERSION = 3
_OLDEST_VERSION = 2
METADATA_KEY = b"ldm_hf"
"""Key of the Parquet schema metadata under which a file keeps its ``RunInfo`` as JSON."""

CHUNK_LENGTH = 8192
"""Transitions that a chunk aims at: four contexts of the paper's 2048. One chunk is one Parquet row group."""

DATA_FILES = "train-*.parquet"
MANIFEST = "manifest.parquet"
TERMINAL_FILE = "terminal.parquet"
EPISODES_FILE = "episodes.parquet"
POLICY_FOLDER = "policy"

BY_STREAM = "stream i is reset with seed + i at first, and without a seed from then on"
"""How the environments of a run were seeded that ``ldm build`` made; it can be replayed."""


def environment_folder(root: Path, environment: str) -> Path:
    """Where an environment's runs lie under a data folder: ``<library>/<config name>``."""
    parsed = EnvironmentId.parse(environment)
    return root / parsed.library / parsed.config_name


@dataclass(frozen=True)
class RunInfo:
    """What a file says of the run that made it.

    Attributes:
        environment: ``<library slug>/<Gymnasium id>``.
        run: name of the run, unique in its environment.
        observation_space, action_space: the spaces as JSON.
        curve: the training episodes.
        deterministic_returns: episodes of the final policy acting deterministically, as the labels do.
        num_episodes, num_transitions, num_streams: recorded episodes that ended, rows, sub-environments.
        training_steps: steps of each stream that were made while the policy was trained. Rows from there on were played by
            the final policy, which finished the episodes that ran and learned nothing from them; 0 if no policy learned
            from any row. None if it is not known, as of data of format version 2, where there are no such rows.
        algorithm: class name in Stable-Baselines3 or SB3-Contrib.
        hyperparameters: what differs from that class's defaults, the number of environments and normalisation included.
        source: where this configuration comes from.
        seed: of the training run; its streams are reset with it, see ``docs/dataset_format.md``.
        max_episode_steps: steps after which an episode was truncated; None where that is not known.
        seeding: how the seed was used: ``BY_STREAM``, or None where that is not known.
        library_version: version of the environment's library, None if it is not an installed distribution.
        licence: SPDX expression of that library.
        provenance: what ran the environment: provider, Python, image digest or lock.
        packages: versions of what trained and recorded the run, Python included.
        assessment: what the reference is worth beside random and trivial policies; None where that is not known.
    """

    environment: str
    run: str
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    curve: LearningCurve
    deterministic_returns: list[float]
    num_episodes: int
    num_transitions: int
    num_streams: int
    training_steps: int | None
    algorithm: str
    hyperparameters: dict[str, Any]
    source: str
    seed: int
    max_episode_steps: int | None
    seeding: str | None
    library_version: str | None
    licence: str
    provenance: dict[str, str]
    packages: dict[str, str]
    assessment: Assessment | None = None

    @property
    def flags(self) -> list[str]:
        """Why the reference is degenerate; empty where it is not, or where that is not known."""
        return [] if self.assessment is None else self.assessment.flags

    @property
    def first10(self) -> float:
        """Mean return of the first 10 % of the training episodes, by their start: 0 % of the normalised score."""
        return self.curve.first.mean

    @property
    def last10(self) -> float:
        """Mean return of the last 10 % of the training episodes, by their start: 100 % of the normalised score."""
        return self.curve.last.mean

    @property
    def deterministic_return(self) -> float:
        """Mean return of the final policy acting deterministically; NaN where it never did."""
        returns = self.deterministic_returns
        return sum(returns) / len(returns) if returns else float("nan")

    def to_json(self) -> str:
        """The JSON that files keep."""
        values = {"version": SCHEMA_VERSION, **asdict(self)}
        return json.dumps({**values, "assessment": None if self.assessment is None else self.assessment.to_json()})

    @classmethod
    def from_json(cls, text: str | bytes, where: object) -> "RunInfo":
        """Read what ``to_json`` wrote, also that of format version 2, whose curve says that it is ordered by ends.

        Raises:
            DatasetFormatError: the text is no such JSON, or of another version; the message begins with ``where``.
        """
        try:
            values = json.loads(text)
            version = values.pop("version")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise DatasetFormatError(f"{where} has metadata that cannot be read: {error}") from error
        if version not in (_OLDEST_VERSION, SCHEMA_VERSION):
            raise DatasetFormatError(
                f"{where} has format version {version}; this version of ldm_hf reads {_OLDEST_VERSION} and {SCHEMA_VERSION}"
            )
        values.pop("seconds", None)  # which files kept once, together with no time limit
        try:
            if version == _OLDEST_VERSION:
                values = {**values, "training_steps": None, "curve": {**values["curve"], "order": BY_END}}
            unknown = {"max_episode_steps": None, "seeding": None}
            assessed = values.pop("assessment", None)
            return cls(
                **{**unknown, **values, "curve": LearningCurve.from_json(values["curve"])},
                assessment=None if assessed is None else Assessment.from_json(assessed),
            )
        except (TypeError, KeyError) as error:
            raise DatasetFormatError(f"{where} has incomplete metadata: {error}") from error

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes] | None, where: object) -> "RunInfo":
        """Read a Parquet schema's metadata; ``DatasetFormatError`` if they are not of this format."""
        text = (metadata or {}).get(METADATA_KEY)
        if text is None:
            raise DatasetFormatError(
                f"{where} is a Parquet file but no ldm_hf dataset: its schema has no such metadata"
            )
        return cls.from_json(text, where)


def arrow_schema(
    observation: SlotLayout, action: SlotLayout, info: RunInfo, image: pa.Field = image_column.FIELD
) -> pa.Schema:
    """The columns of an environment's files. A space without scalar slots has no ``observation`` column."""
    columns = [*_place(), *_observed(observation, image)]
    columns += [
        pa.field("action", pa.list_(pa.float32(), action.num_slots), False),
        pa.field("reward", pa.float32(), False),
        pa.field("terminated", pa.bool_(), False),
        pa.field("truncated", pa.bool_(), False),
        pa.field("reference_action", pa.list_(pa.float32(), action.num_slots), False),
    ]
    return pa.schema(columns, _metadata(observation, info))


def terminal_schema(observation: SlotLayout, info: RunInfo) -> pa.Schema:
    """The columns of the file of observations that ended episodes: the place of the last transition, and what it led to."""
    return pa.schema([*_place(), *_observed(observation, image_column.FIELD)], _metadata(observation, info))


def _metadata(observation: SlotLayout, info: RunInfo) -> dict[bytes, bytes]:
    features = {} if observation.image is None else image_column.FEATURES
    return {METADATA_KEY: info.to_json().encode(), **features}


def _place() -> list[pa.Field]:
    return [
        pa.field("run", pa.string(), False),
        pa.field("stream", pa.int32(), False),
        pa.field("step", pa.int64(), False),
    ]


def _observed(observation: SlotLayout, image: pa.Field) -> list[pa.Field]:
    columns = []
    if observation.num_slots:
        columns.append(pa.field("observation", pa.list_(pa.float32(), observation.num_slots), False))
    if observation.image is not None:
        columns.append(image)
    return columns
