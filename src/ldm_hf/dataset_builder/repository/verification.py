"""Checks whole dataset repositories: what they say of themselves, every file, every row; for ``ldm check``."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldm_hf.dataset_builder.format.checks import ValueChecks
from ldm_hf.dataset_builder.format.data_file import DataFile, checked_footer, one_line
from ldm_hf.dataset_builder.format.episode_index import EpisodeIndex
from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.dataset_builder.format.row_groups import read_table
from ldm_hf.dataset_builder.format.schema import CHUNK_LENGTH, EPISODES_FILE, MANIFEST, TERMINAL_FILE, RunInfo
from ldm_hf.dataset_builder.format.storage import Storage
from ldm_hf.dataset_builder.repository.merging import is_ours
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import DatasetFormatError, HubError, LDMError
from ldm_hf.modeling.spaces_ldm import InvalidValueError, SlotLayout, Transitions, UnsupportedSpaceError

_FAILURES = (LDMError, OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, pa.ArrowException)


@dataclass
class RunCheck:
    """What was found of one run.

    Attributes:
        where: its repository.
        environment, run: as the manifest names them.
        dataset: the run, if it could be opened.
        rows: that were read.
        outside: rows whose observation lies outside the space that the environment declares, which is not a defect.
        first_outside: the file and the row of the first of them.
        defects: one line each, with file and row.
    """

    where: str
    environment: str
    run: str
    dataset: EnvironmentDataset | None = None
    rows: int = 0
    outside: int = 0
    first_outside: str = ""
    defects: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.environment}, run {self.run}"


def check_repository(
    storage: Storage,
    environments: Sequence[str] | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> Iterator[RunCheck]:
    """Check all of a repository, run by run; a defect is a line of its run's result, and the rest is checked all the same.

    Args:
        storage: the repository.
        environments: ids; by default all.
        progress: called with the number of rows that were read since.

    Raises:
        DatasetFormatError: its manifest cannot be read.
        HubError: a file cannot be had from the Hub.
    """
    try:
        table = storage.read(MANIFEST, read_table)
        rows = table.to_pylist()
        named = [(str(row["environment"]), str(row["run"]), row["files"], row["info"], row["rows"]) for row in rows]
    except _FAILURES as error:
        if isinstance(error, DatasetFormatError | HubError):
            raise
        raise DatasetFormatError(
            f"{storage.where(MANIFEST)} cannot be read as a manifest: {one_line(error)}"
        ) from error
    listed = {entry.get("path") for _, _, files, _, _ in named for entry in files or ()}
    unlisted = [path for path in storage.paths() if is_ours(path) and path not in listed]
    for number, (environment, run, files, info, length) in enumerate(named):
        if environments is None or environment in environments:
            found = RunCheck(storage.name, environment, run)
            with _noted(found, f"{storage.where(MANIFEST)}, row {number}"):
                _check_run(storage, found, files, info, length, progress)
            folders = {"/".join(str(entry["path"]).split("/")[:2]) for entry in files or ()}
            found.defects += [
                f"{storage.where(path)} is in no manifest, and plain readers take it for data"
                for path in unlisted
                if "/".join(path.split("/")[:2]) in folders
            ]
            yield found


@contextlib.contextmanager
def _noted(found: RunCheck, where: str) -> Iterator[None]:
    """Add what is raised in the block to a run's defects, but for what says nothing of it: a broken connection."""
    try:
        yield
    except HubError:
        raise
    except _FAILURES as error:
        found.defects.append(str(error) if isinstance(error, LDMError) else f"{where}: {one_line(error)}")


def _check_run(
    storage: Storage,
    found: RunCheck,
    files: list[dict[str, Any]],
    text: str,
    length: int,
    progress: Callable[[int], object],
) -> None:
    where = storage.where(MANIFEST)
    info = RunInfo.from_json(text, where)
    EnvironmentId.parse(info.environment)
    if (info.environment, info.run) != (found.environment, found.run):
        raise DatasetFormatError(
            f"{where} lists {found.environment}, run {found.run}, with the metadata of {info.environment}, run {info.run}"
        )
    chunks = [count for entry in files for count in entry["chunks"]]
    if sum(chunks) != length or length != info.num_transitions or not chunks:
        raise DatasetFormatError(
            f"{where} gives {info.environment}, run {info.run}, {length} rows, {info.num_transitions} in its metadata and "
            f"{sum(chunks)} in its files"
        )
    if not all(0 < count <= CHUNK_LENGTH for count in chunks):
        raise DatasetFormatError(
            f"{where} lists chunks of {min(chunks)} to {max(chunks)} rows; they have 1 to {CHUNK_LENGTH}"
        )
    for entry in files:
        _check_content(storage, found, entry)
    if found.defects:
        return  # what is not the file that was written need not be read
    data = [DataFile(storage, entry["path"], info, tuple(entry["chunks"])) for entry in files if entry["chunks"]]
    found.dataset = EnvironmentDataset(data)
    try:
        layouts = SlotLayout.of(info.observation_space), SlotLayout.of(info.action_space, role="action")
    except (UnsupportedSpaceError, InvalidValueError) as error:
        raise DatasetFormatError(f"{where}: {info.environment}, run {info.run}: {error}") from error
    rows = _Rows(found, info, ValueChecks(*layouts), progress)
    for file in data:
        with _noted(found, file.where):
            rows.check_file(file)
    if not found.defects:
        rows.check_streams(storage.where(data[0].path))
        rows.check_terminals(found.dataset, data[0].where.rpartition("/")[0])
        if any(entry["path"].endswith(f"/{EPISODES_FILE}") for entry in files):
            rows.check_index(storage, data[0].path.rpartition("/")[0])


def _check_content(storage: Storage, found: RunCheck, entry: dict[str, Any]) -> None:
    """Whether a file is the one that its manifest was written of: its place, size and SHA-256."""
    path = storage.inside(entry["path"])
    with _noted(found, storage.where(path)):
        size, digest = storage.read(path, _hash)
        if size != entry["bytes"]:
            raise DatasetFormatError(
                f"{storage.where(path)} has {size} bytes, {entry['bytes']} in its manifest: it is truncated or foreign"
            )
        if digest != entry["sha256"]:
            raise DatasetFormatError(
                f"{storage.where(path)} has the SHA-256 {digest[:12]}..., {entry['sha256'][:12]}... in its manifest: "
                "it was exchanged or damaged"
            )


def _hash(file: Any) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while block := file.read(2**20):
        digest.update(block)
        size += len(block)
    return size, digest.hexdigest()


class _Rows:
    """The rows of one run, checked chunk by chunk."""

    def __init__(self, found: RunCheck, info: RunInfo, checks: ValueChecks, progress: Callable[[int], object]) -> None:
        self._found, self._info, self._checks, self._progress = found, info, checks, progress
        self._pieces: dict[int, list[tuple[int, int, str]]] = {}
        self._index = EpisodeIndex(())

    def check_file(self, file: DataFile) -> None:
        """Check every row of a file; of each chunk, the first defect counts."""
        dataset, first = EnvironmentDataset([file]), 0
        checked_footer(file)
        for chunk, length in enumerate(file.chunks):
            with _noted(self._found, f"{file.where}, row {first}"):
                stream, start = self._check_place(file, chunk, first)
                transitions = dataset.chunk(chunk)
                self._checks.require(transitions, file.where, first)
                self._count_outside(transitions, file, first)
                self._pieces.setdefault(stream, []).append((start, start + length, f"{file.where}, row {first}"))
                self._index.add(stream, start, transitions)
            first += length
            self._found.rows += length
            self._progress(length)

    def _check_place(self, file: DataFile, chunk: int, first: int) -> tuple[int, int]:
        table = file.storage.read(
            file.path,
            lambda opened: pq.ParquetFile(opened).read_row_group(chunk, columns=["run", "stream", "step"]),
        )
        streams, steps = table["stream"].to_numpy(), table["step"].to_numpy()
        wrong = {
            f"the run is {self._info.run}": np.array(table["run"].to_pylist()) != self._info.run,
            f"streams are 0 to {self._info.num_streams - 1}": (streams < 0) | (streams >= self._info.num_streams),
            "a chunk is of one stream": streams != streams[0],
            "steps are consecutive": steps != steps[0] + np.arange(len(steps)),
        }
        for rule, rows in wrong.items():
            if rows.any():
                row = int(rows.argmax())
                place = f"run {table['run'][row]}, stream {streams[row]}, step {steps[row]}"
                raise DatasetFormatError(f"{file.where}, row {first + row}: {place}, but {rule}")
        return int(streams[0]), int(steps[0])

    def _count_outside(self, transitions: Transitions, file: DataFile, first: int) -> None:
        outside = self._checks.outside(transitions.observations)
        if outside.any() and not self._found.first_outside:
            self._found.first_outside = f"{file.where}, row {first + int(outside.argmax())}"
        self._found.outside += int(outside.sum())

    def check_streams(self, where: str) -> None:
        """Whether every step of every stream is there once."""
        for stream in range(self._info.num_streams):
            expected = 0
            for start, stop, place in sorted(self._pieces.get(stream, [])):
                if start != expected:
                    what = "missing" if start > expected else "there twice"
                    steps = f"{min(start, expected)} to {max(start, expected) - 1}"
                    raise DatasetFormatError(f"{place}: steps {steps} of stream {stream} are {what}")
                expected = stop
            if not expected:
                raise DatasetFormatError(f"{where}: nothing is there of stream {stream}")

    def check_terminals(self, dataset: EnvironmentDataset, folder: str) -> None:
        """Whether what ended episodes belongs to transitions that ended them."""
        table = self._index.table(self._info.run)
        last = table["step"].to_numpy() + table["length"].to_numpy() - 1
        ended = table["terminated"].to_numpy() | table["truncated"].to_numpy()
        ends = set(zip(table["stream"].to_numpy()[ended].tolist(), last[ended].tolist(), strict=True))
        terminals = dataset.terminals()
        where = f"{folder}/{TERMINAL_FILE}"
        if defect := self._checks.observation_defect(terminals.observations):
            raise DatasetFormatError(f"{where}, row {defect.row}: {defect.reason}")
        seen: set[tuple[int, int]] = set()
        for row, place in enumerate(zip(terminals.streams.tolist(), terminals.steps.tolist(), strict=True)):
            if place not in ends or place in seen:
                what = "there twice" if place in seen else "not the end of an episode"
                raise DatasetFormatError(f"{where}, row {row}: step {place[1]} of stream {place[0]} is {what}")
            seen.add(place)

    def check_index(self, storage: Storage, folder: str) -> None:
        """Whether the index of episodes is that of the transitions."""
        path = f"{folder}/{EPISODES_FILE}"
        found, made = storage.read(path, read_table), self._index.table(self._info.run)
        columns = [name for name in made.schema.names if name not in ("resets", "return")]
        if found.select(columns) != made.select(columns).replace_schema_metadata(found.schema.metadata):
            pairs = zip(found.select(columns).to_pylist(), made.select(columns).to_pylist(), strict=False)
            row = next(
                (number for number, (one, other) in enumerate(pairs) if one != other), min(len(found), len(made))
            )
            raise DatasetFormatError(f"{storage.where(path)}, row {row}: it is not the episode that the data have")
        wrong = ~np.isclose(found["return"].to_numpy(), made["return"].to_numpy(), rtol=1e-6, atol=1e-6)
        if wrong.any():
            raise DatasetFormatError(f"{storage.where(path)}, row {wrong.argmax()}: the data have another return")
