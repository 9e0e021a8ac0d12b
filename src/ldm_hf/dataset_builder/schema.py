"""The on-disk format, version 1: what a dataset file holds. ``docs/dataset_format.md`` is its specification."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import DatasetFormatError
from ldm_hf.modeling.spaces_ldm import SlotLayout

SCHEMA_VERSION = 1
METADATA_KEY = b"ldm_hf"
"""Key of the Parquet schema metadata under which a file keeps its ``RunInfo`` as JSON."""

CHUNK_LENGTH = 8192
"""Transitions that a chunk aims at: four contexts of the paper's 2048. One chunk is one Parquet row group."""


def dataset_folder(root: Path, environment: str) -> Path:
    """Where an environment's dataset lies under a data folder: ``<library>/<config name>``."""
    parsed = EnvironmentId.parse(environment)
    return root / parsed.library / parsed.config_name


@dataclass(frozen=True)
class RunInfo:
    """What a file says of the run that made it.

    Attributes:
        environment: ``<library slug>/<Gymnasium id>``.
        observation_space, action_space: the spaces as JSON.
        first10, last10: mean return of the first and last 10 % of the training episodes.
        deterministic_return: mean return of the final policy acting deterministically, as the labels do.
        deterministic_returns: its episodes.
        num_episodes, num_transitions, num_streams: recorded episodes that ended, rows, sub-environments.
        algorithm: class name in Stable-Baselines3 or SB3-Contrib.
        hyperparameters: what differs from that class's defaults, the number of environments and normalisation included.
        seed: of the training run.
        library_version: version of the environment's library, None if it is no installed distribution.
        packages: versions of what trained and recorded the run, Python included.
    """

    environment: str
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    first10: float
    last10: float
    deterministic_return: float
    deterministic_returns: list[float]
    num_episodes: int
    num_transitions: int
    num_streams: int
    algorithm: str
    hyperparameters: dict[str, Any]
    seed: int
    library_version: str | None
    packages: dict[str, str]

    def to_json(self) -> str:
        """The JSON that files keep."""
        return json.dumps({"version": SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes] | None, path: Path) -> "RunInfo":
        """Read what ``to_json`` wrote from a Parquet schema's metadata.

        Raises:
            DatasetFormatError: the file is not of this format, or of another version of it.
        """
        text = (metadata or {}).get(METADATA_KEY)
        if text is None:
            raise DatasetFormatError(f"{path} is a Parquet file but no ldm_hf dataset: its schema has no such metadata")
        try:
            values = json.loads(text)
            version = values.pop("version")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise DatasetFormatError(f"{path} has metadata that cannot be read: {error}") from error
        if version != SCHEMA_VERSION:
            raise DatasetFormatError(
                f"{path} has format version {version}; this version of ldm_hf reads {SCHEMA_VERSION}"
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise DatasetFormatError(f"{path} has incomplete metadata: {error}") from error


def arrow_schema(observation: SlotLayout, action: SlotLayout, info: RunInfo) -> pa.Schema:
    """The columns of an environment's files. A space without scalar slots has no ``observation`` column."""
    columns = [pa.field("stream", pa.int32(), False), pa.field("step", pa.int64(), False)]
    if observation.num_slots:
        columns.append(pa.field("observation", pa.list_(pa.float32(), observation.num_slots), False))
    if observation.image is not None:
        columns.append(pa.field("image", pa.binary(), False))
    columns += [
        pa.field("action", pa.list_(pa.float32(), action.num_slots), False),
        pa.field("reward", pa.float32(), False),
        pa.field("terminated", pa.bool_(), False),
        pa.field("truncated", pa.bool_(), False),
        pa.field("reference_action", pa.list_(pa.float32(), action.num_slots), False),
    ]
    return pa.schema(columns, {METADATA_KEY: info.to_json().encode()})
