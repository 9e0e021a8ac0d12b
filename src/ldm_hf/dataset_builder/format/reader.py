"""Reads datasets: chunks of transitions as numpy arrays, with every defect named by path and reason."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from ldm_hf.dataset_builder.format import image_column
from ldm_hf.dataset_builder.format.data_file import DataFile, checked_footer, read_footer
from ldm_hf.dataset_builder.format.row_groups import column_of, read_row_group, read_table, vectors_of
from ldm_hf.dataset_builder.format.schema import CHUNK_LENGTH, DATA_FILES, MANIFEST, TERMINAL_FILE, RunInfo
from ldm_hf.dataset_builder.format.storage import FolderStorage, Storage, open_storages
from ldm_hf.dataset_builder.format.writer import Terminals
from ldm_hf.errors import DatasetFormatError, HubError, UnknownEnvironmentError, one_line
from ldm_hf.modeling.spaces_ldm import SlotLayout, Transitions


class EnvironmentDataset:
    """The recorded transitions of one environment, of one or several runs, read chunk by chunk.

    Opening it reads nothing but what the manifest says, and no file stays open between two reads, so that thousands of
    environments cost little.

    Args:
        files: of all runs.

    Raises:
        DatasetFormatError: the runs have different spaces, or spaces that cannot be read.
    """

    def __init__(self, files: Sequence[DataFile]):
        self._files = list(files)
        self.runs: list[RunInfo] = []
        for file in self._files:
            if file.info not in self.runs:  # by all that is known: builds of different lengths name their runs alike
                self.runs.append(file.info)
        self.info = max(self.runs, key=lambda info: info.last10)
        first = self._files[0].where
        try:
            self._observation = SlotLayout.of(self.info.observation_space)
            self._action = SlotLayout.of(self.info.action_space, role="action")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DatasetFormatError(f"{first} has spaces that cannot be read: {one_line(error, 200)}") from error
        spaces = (self.info.observation_space, self.info.action_space)
        if any((info.observation_space, info.action_space) != spaces for info in self.runs):
            raise DatasetFormatError(f"{first} and other runs of {self.environment} have different spaces")
        self.chunk_lengths = np.array([length for file in self._files for length in file.chunks], np.int64)
        self._last_chunks = np.cumsum([len(file.chunks) for file in self._files])

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

    def best_run(self) -> "EnvironmentDataset":
        """The run that ``info`` is of, alone."""
        return EnvironmentDataset([file for file in self._files if file.info == self.info])

    def chunk(self, index: int) -> Transitions:
        """The consecutive transitions of one chunk, as views of the decoded columns.

        Raises:
            DatasetFormatError: the file is missing, damaged, foreign, or another than the manifest says.
            HubError: it cannot be had from the Hub.
        """
        file, group = self._place(index)
        footer = checked_footer(file)
        try:
            table = file.storage.read(file.path, functools.partial(read_row_group, footer=footer, group=group))
        except (OSError, ValueError, pa.ArrowException) as error:
            if isinstance(error, DatasetFormatError | HubError):
                raise
            raise DatasetFormatError(f"{file.where} is damaged in chunk {group}: {one_line(error, 200)}") from error
        length = table.num_rows
        return Transitions(
            vectors_of(table, "observation") if self._observation.num_slots else self._no_slots(length),
            self._images(table, file) if self._observation.image is not None else None,
            vectors_of(table, "action"),
            column_of(table, "reward").to_numpy(),
            column_of(table, "terminated").to_numpy(zero_copy_only=False),
            column_of(table, "truncated").to_numpy(zero_copy_only=False),
            vectors_of(table, "reference_action"),
        )

    def file(self, index: int) -> str:
        """The file of a chunk, as messages name it."""
        return self._place(index)[0].where

    def rows(self, index: int) -> range:
        """The rows of its file that a chunk has."""
        file, group = self._place(index)
        first = sum(file.chunks[:group])
        return range(first, first + file.chunks[group])

    def _place(self, index: int) -> tuple[DataFile, int]:
        number = int(np.searchsorted(self._last_chunks, index, side="right"))
        file = self._files[number]
        return file, index - int(self._last_chunks[number]) + len(file.chunks)

    def places(self) -> list[tuple[int, int]]:
        """Stream and first step of each chunk; raises as ``chunk``."""
        found = []
        for file in self._files:
            footer = checked_footer(file)
            for group in range(footer.num_row_groups):
                columns = [footer.row_group(group).column(index) for index in (1, 2)]  # after ``run``
                found.append(tuple(int(column.statistics.min) for column in columns))
        return found  # type: ignore[return-value]

    def beside(self, name: str) -> DataFile:
        """A file that lies beside those of a run, of a dataset of one run."""
        first = self._files[0]
        return replace(first, path=str(PurePosixPath(first.path).with_name(name)), chunks=())

    def terminals(self) -> Terminals:
        """What the last actions of episodes led to, of a dataset of one run.

        Episodes that an algorithm broke off, or that the end of the recording cut, have none.

        Raises:
            DatasetFormatError, HubError: as ``chunk``.
        """
        file = self.beside(TERMINAL_FILE)
        try:
            table = file.storage.read(file.path, read_table).combine_chunks()
        except (OSError, ValueError, pa.ArrowException) as error:
            if isinstance(error, DatasetFormatError | HubError):
                raise
            raise DatasetFormatError(f"{file.where} cannot be read: {one_line(error, 200)}") from error
        some = len(table) > 0
        return Terminals(
            table["stream"].to_numpy(),
            table["step"].to_numpy(),
            vectors_of(table, "observation") if self._observation.num_slots and some else self._no_slots(len(table)),
            self._images(table, file) if self._observation.image is not None and some else None,
        )

    def _no_slots(self, length: int) -> np.ndarray:
        return np.empty((length, self._observation.num_slots), np.float32)

    def _images(self, table: pa.Table, file: DataFile) -> np.ndarray:
        images = image_column.from_column(column_of(table, image_column.IMAGE))
        if images is None:
            side = self._observation.image_size
            raise DatasetFormatError(f"{file.where} holds images that are not {side}x{side}x3 bytes")
        return images


def open_dataset(folder: Path) -> EnvironmentDataset:
    """Open the files of one run's folder without a manifest.

    Raises:
        DatasetFormatError: there are none, they cannot be read, or not all are there.
    """
    storage = FolderStorage(Path(folder))
    names = sorted(path.name for path in Path(folder).glob(DATA_FILES))
    if not names:
        raise DatasetFormatError(f"{folder} holds no dataset: there is no {DATA_FILES} in it")
    files = []
    for name in names:
        metadata, schema = read_footer(storage, name)
        chunks = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        files.append(DataFile(storage, name, RunInfo.from_metadata(schema.metadata, storage.where(name)), chunks))
    dataset = EnvironmentDataset(files)
    for file in files:
        if file.info != files[0].info:
            raise DatasetFormatError(f"{file.where} belongs to another run than {files[0].where}")
        checked_footer(file)
    if dataset.num_transitions != dataset.info.num_transitions:
        subject = files[0].where + (f" and {len(files) - 1} more files hold" if len(files) > 1 else " holds")
        raise DatasetFormatError(
            f"{subject} {dataset.num_transitions} transitions, but announced are {dataset.info.num_transitions}: "
            "one is damaged or missing"
        )
    return dataset


def open_datasets(
    data: str | Path | Sequence[str | Path], environments: Sequence[str] | None = None, *, cached: bool = True
) -> list[EnvironmentDataset]:
    """Open the datasets that manifests list, sorted by environment id.

    Args:
        data: a folder of dataset repositories, or of such folders, one such repository, ``hf://datasets/<namespace>/<name>``,
            or several of these. The runs of an environment that is in more than one are put together.
        environments: ids to open; by default all.
        cached: of the Hub: whether whole files are downloaded to its cache when they are first used. Otherwise only
            what is needed is read over the network, each time.

    Raises:
        DatasetFormatError: there is no manifest, or a file that one lists is missing, cannot be read or is of another run.
        UnknownEnvironmentError: an id is in no manifest.
        HubError: a repository of the Hub cannot be read.
    """
    places = [data] if isinstance(data, str | Path) else list(data)
    found: dict[str, list[DataFile]] = {}
    for place in places:
        for storage in open_storages(place, cached):
            for file in _listed_files(storage, environments):
                found.setdefault(file.info.environment, []).append(file)
    missing = [environment for environment in environments or () if environment not in found]
    if missing or not found:
        named = ", ".join(map(str, places))
        wanted = ", ".join(missing) or "any environment"
        raise UnknownEnvironmentError(f"{named} has no data of {wanted}; it has {', '.join(sorted(found)) or 'none'}")
    return [EnvironmentDataset(found[environment]) for environment in sorted(found)]


def _listed_files(storage: Storage, environments: Sequence[str] | None) -> list[DataFile]:
    try:
        rows = storage.read(MANIFEST, _manifest_rows)
        files = []
        for row in rows:
            if environments is not None and row["environment"] not in environments:
                continue
            info = RunInfo.from_json(row["info"], storage.where(MANIFEST))
            _check_chunks(storage, row, info)
            for entry in row["files"]:
                _check_size(storage, entry)
                if entry["chunks"]:
                    files.append(DataFile(storage, entry["path"], info, tuple(entry["chunks"])))
        return files
    except (OSError, KeyError, TypeError, ValueError, RecursionError, pa.ArrowException) as error:
        if isinstance(error, DatasetFormatError | HubError):
            raise
        raise DatasetFormatError(
            f"{storage.where(MANIFEST)} cannot be read as a manifest: {one_line(error, 200)}"
        ) from error


def _manifest_rows(file: Any) -> list[dict[str, Any]]:
    columns = ["environment", "files", "info"]
    return list(read_table(file, columns).to_pylist())


def _check_chunks(storage: Storage, row: dict[str, Any], info: RunInfo) -> None:
    chunks = [length for entry in row["files"] for length in entry["chunks"]]
    sane = all(0 < length <= CHUNK_LENGTH for length in chunks) and info.environment == row["environment"]
    if not sane or sum(chunks) != info.num_transitions:
        raise DatasetFormatError(
            f"{storage.where(MANIFEST)} lists chunks of {info.environment}, run {info.run}, that cannot be its "
            f"{info.num_transitions} transitions: it was changed"
        )


def _check_size(storage: Storage, entry: dict[str, Any]) -> None:
    size = storage.size(entry["path"])
    if size is not None and size != entry["bytes"]:
        raise DatasetFormatError(
            f"{storage.where(entry['path'])} has {size} bytes, {entry['bytes']} in its manifest: it is truncated or foreign"
        )
