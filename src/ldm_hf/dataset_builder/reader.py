"""Reads datasets: chunks of transitions as numpy arrays, with every defect named by path and reason."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldm_hf.dataset_builder.schema import RunInfo, arrow_schema
from ldm_hf.errors import DatasetFormatError, UnknownEnvironmentError
from ldm_hf.modeling.processing_ldm import Transitions
from ldm_hf.modeling.spaces_ldm import SlotLayout


class EnvironmentDataset:
    """The recorded transitions of one environment, read chunk by chunk. No file stays open between two reads.

    Args:
        paths: its files, all of one run.

    Raises:
        DatasetFormatError: a file is missing, truncated, foreign, of another version, or of another environment.
    """

    def __init__(self, paths: Sequence[Path]):
        self._paths = list(paths)
        self.info = RunInfo.from_metadata(_footer(self._paths[0])[1].metadata, self._paths[0])
        try:
            self._observation = SlotLayout.of(self.info.observation_space)
            self._action = SlotLayout.of(self.info.action_space, role="action")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DatasetFormatError(f"{self._paths[0]} has spaces that cannot be read: {_reason(error)}") from error

    @property
    def environment(self) -> str:
        """``<library slug>/<Gymnasium id>``."""
        return self.info.environment

    @property
    def observation_space(self) -> dict[str, Any]:
        """The space as JSON."""
        return self.info.observation_space

    @property
    def action_space(self) -> dict[str, Any]:
        """The space as JSON."""
        return self.info.action_space

    @property
    def num_chunks(self) -> int:
        """How many chunks ``chunk`` can give."""
        return len(self.chunk_lengths)

    @property
    def num_transitions(self) -> int:
        """Rows of all files."""
        return int(self.chunk_lengths.sum())

    @cached_property
    def chunk_lengths(self) -> np.ndarray:
        """Transitions of each chunk, int64 of shape (num_chunks,)."""
        return np.array([meta.row_group(group).num_rows for _, meta, group in self._chunks], np.int64)

    def chunk(self, index: int) -> Transitions:
        """The consecutive transitions of one chunk, as views of the decoded columns.

        Raises:
            DatasetFormatError: the file is damaged there.
        """
        path, metadata, group = self._chunks[index]
        try:
            with pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True) as file:
                table = file.read_row_group(group).combine_chunks()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DatasetFormatError(f"{path} is damaged in chunk {group}: {_reason(error)}") from error
        length = table.num_rows
        return Transitions(
            _vectors(table, "observation") if self._observation.num_slots else np.empty((length, 0), np.float32),
            self._images(table, path) if self._observation.image is not None else None,
            _vectors(table, "action"),
            _column(table, "reward").to_numpy(),
            _column(table, "terminated").to_numpy(zero_copy_only=False),
            _column(table, "truncated").to_numpy(zero_copy_only=False),
            _vectors(table, "reference_action"),
        )

    @cached_property
    def _chunks(self) -> list[tuple[Path, pq.FileMetaData, int]]:
        chunks = []
        expected = arrow_schema(self._observation, self._action, self.info)
        for path in self._paths:
            metadata, schema = _footer(path)
            if RunInfo.from_metadata(schema.metadata, path) != self.info:
                raise DatasetFormatError(f"{path} belongs to another run than {self._paths[0]}")
            if not schema.equals(expected):
                raise DatasetFormatError(f"{path} has columns that do not fit its spaces: {', '.join(schema.names)}")
            chunks += [(path, metadata, group) for group in range(metadata.num_row_groups)]
        if sum(metadata.row_group(group).num_rows for _, metadata, group in chunks) != self.info.num_transitions:
            raise DatasetFormatError(
                f"{self._paths[0].parent} does not hold the {self.info.num_transitions} transitions that its files announce"
            )
        return chunks

    def _images(self, table: pa.Table, path: Path) -> np.ndarray:
        column = _column(table, "image")
        side = self._observation.image_size
        data = np.frombuffer(column.buffers()[2], np.uint8)
        if data.size != len(column) * side * side * 3:
            raise DatasetFormatError(f"{path} holds images that are not {side}x{side}x3 bytes")
        return data.reshape(len(column), side, side, 3)


def open_dataset(folder: Path) -> EnvironmentDataset:
    """Open the files of one environment's folder.

    Raises:
        DatasetFormatError: there are none, or they cannot be read.
    """
    paths = sorted(Path(folder).glob("train-*.parquet"))
    if not paths:
        raise DatasetFormatError(f"{folder} holds no dataset: there is no train-*.parquet in it")
    return EnvironmentDataset(paths)


def open_datasets(root: Path, environments: Sequence[str] | None = None) -> list[EnvironmentDataset]:
    """Open the datasets that the manifests under a folder list, sorted by environment id.

    Args:
        root: a folder of dataset repositories, one a library.
        environments: ids to open; by default all.

    Raises:
        DatasetFormatError: there is no manifest, or a file that one lists is missing, cannot be read or is of another run.
        UnknownEnvironmentError: an id is in no manifest.
    """
    manifests = sorted(Path(root).glob("*/manifest.parquet"))
    if not manifests:
        raise DatasetFormatError(f"{root} holds no datasets: there is no <library>/manifest.parquet under it")
    found: dict[str, tuple[list[Path], str]] = {}
    for manifest in manifests:
        try:
            columns = ["environment", "files", "info"]
            rows = pq.read_table(manifest, columns=columns, page_checksum_verification=True).to_pylist()
            for row in rows:
                found[row["environment"]] = [manifest.parent / file["path"] for file in row["files"]], row["info"]
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise DatasetFormatError(f"{manifest} cannot be read as a manifest: {_reason(error)}") from error
    missing = [environment for environment in environments or () if environment not in found]
    if missing:
        raise UnknownEnvironmentError(f"{root} has no data of {', '.join(missing)}; it has {', '.join(sorted(found))}")
    return [_as_listed(*found[environment]) for environment in sorted(environments or found)]


def _as_listed(paths: list[Path], info: str) -> EnvironmentDataset:
    dataset = EnvironmentDataset(paths)
    if dataset.info.to_json() != info:
        raise DatasetFormatError(
            f"{paths[0]} says other things of its run than the manifest: one of them is damaged or old"
        )
    return dataset


def _footer(path: Path) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        metadata = pq.read_metadata(path)
        return metadata, metadata.schema.to_arrow_schema()
    except FileNotFoundError as error:
        raise DatasetFormatError(f"{path} is missing") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetFormatError(f"{path} is no whole Parquet file (truncated or foreign): {_reason(error)}") from error


def _column(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).chunk(0)


def _vectors(table: pa.Table, name: str) -> np.ndarray:
    column = _column(table, name)
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
