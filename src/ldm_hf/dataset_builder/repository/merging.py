"""What a repository of the Hub will hold: the runs of local folders beside those that were published before."""

import fnmatch
import json
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_hf.dataset_builder.format.schema import MANIFEST, RunInfo
from ldm_hf.dataset_builder.format.storage import FolderStorage
from ldm_hf.dataset_builder.repository.repository import RUNS, Description, Row
from ldm_hf.errors import DatasetFormatError
from ldm_hf.hub.client import LocalFile

_OURS = ("train-*-of-*.parquet", "terminal.parquet", "episodes.parquet", "policy/*.json", "policy/*.safetensors")
"""Files of a run's folder that this package writes. Others are their owner's."""


@dataclass(frozen=True)
class Published:
    """What the Hub's repository says of itself.

    Attributes:
        description: of the runs that it holds.
        paths: of all its files.
    """

    description: Description
    paths: Collection[str]


@dataclass(frozen=True)
class Merged:
    """What a repository will hold, and what it will no longer hold.

    Attributes:
        description: of all of its runs.
        files: of the local runs.
        replaced: folders of the runs that are there with other content.
        deleted: folders of the runs that are there and are to go.
        stale: paths of the files that are to go, with the runs that are deleted and those that are replaced.
    """

    description: Description
    files: list[LocalFile]
    replaced: list[str]
    deleted: list[str]
    stale: list[str]

    @property
    def loses(self) -> bool:
        """Whether something that the Hub has will be gone."""
        return bool(self.replaced or self.stale)


def merge(folders: Sequence[Path], published: Published, *, delete: bool) -> Merged:
    """Put the runs of local repositories of one library beside those of the Hub's.

    A run keeps its folder ``<config>/<run>``. Another run of the same name (trained for longer, say) has its own beside it.

    Args:
        folders: local repositories.
        published: what the Hub has.
        delete: whether runs that no local folder has are to go.

    Raises:
        DatasetFormatError: a local file is not what its manifest says, or two folders hold different versions of one run.
    """
    there = {_folder(row): row for row in published.description.manifest}
    kept: dict[str, Row] = {} if delete else dict(there)
    places = {_identity(row): place for place, row in kept.items()}
    local: dict[str, Row] = {}
    files: dict[str, LocalFile] = {}
    for folder in folders:
        for row in read_description(folder).manifest:
            sources = _local_files(folder, row)
            place = places.setdefault(_identity(row), _free_place(row, kept))
            moved = _moved(row, place)
            if place in local and _content(local[place]) != _content(moved):
                raise DatasetFormatError(
                    f"{folder} and another folder hold different versions of {place}: publish one of them"
                )
            kept[place] = local[place] = moved
            for entry, source in zip(moved["files"], sources, strict=True):
                files[entry["path"]] = LocalFile(entry["path"], source, entry["bytes"], entry["sha256"])
    replaced = [place for place in local if place in there and _content(there[place]) != _content(local[place])]
    deleted = [place for place in there if place not in kept]
    stale = _stale(published.paths, files, [*local, *deleted], kept, delete=delete)
    rows = sorted(kept.values(), key=lambda row: (row["environment"], row["run"], _folder(row)))
    before = [] if delete else published.description.runs
    runs = _merged_runs(before, [read_description(folder).runs for folder in folders], rows)
    return Merged(Description(rows, runs), list(files.values()), replaced, deleted, stale)


def read_description(folder: Path) -> Description:
    """What a folder says of its runs.

    Raises:
        DatasetFormatError: it cannot be read, or is of another version.
    """
    try:
        manifest = pq.read_table(folder / MANIFEST).to_pylist()
        runs = pq.read_table(folder / RUNS).to_pylist() if (folder / RUNS).is_file() else []
        for row in manifest:
            RunInfo.from_json(row["info"], folder / MANIFEST)
            for entry in row["files"]:
                FolderStorage(folder).inside(entry["path"])
            _folder(row), row["rows"], [entry["sha256"] for entry in row["files"]]
        return Description(manifest, runs)
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
        if isinstance(error, DatasetFormatError):
            raise
        reason = " ".join(str(error).split())
        raise DatasetFormatError(f"{folder / MANIFEST} cannot be read as a manifest: {reason}") from error


def _folder(row: Row) -> str:
    """Where the files of a run lie in its repository: ``<config>/<run>``."""
    return "/".join(row["files"][0]["path"].split("/")[:2])


def _identity(row: Row) -> tuple[Any, ...]:
    """What a run was asked to be: a run that is made a second time has the same, whatever came of it."""
    info = json.loads(row["info"])
    settings = json.dumps(info["hyperparameters"], sort_keys=True)
    return info["environment"], info["run"], info["algorithm"], settings, info["seed"], info["num_transitions"]


def _content(row: Row) -> set[tuple[str, str]]:
    return {(entry["path"], entry["sha256"]) for entry in row["files"]}


def _free_place(row: Row, taken: Collection[str]) -> str:
    plain = f"{row['config']}/{row['run']}"
    return plain if plain not in taken else f"{plain}-{zlib.crc32(repr(_identity(row)).encode()):08x}"


def _moved(row: Row, place: str) -> Row:
    depth = len(_folder(row)) + 1
    return {**row, "files": [{**entry, "path": f"{place}/{entry['path'][depth:]}"} for entry in row["files"]]}


def _local_files(folder: Path, row: Row) -> list[Path]:
    sources = [folder / entry["path"] for entry in row["files"]]
    for source, entry in zip(sources, row["files"], strict=True):
        if not source.is_file() or source.stat().st_size != entry["bytes"]:
            raise DatasetFormatError(f"{source} is missing or has another size than the manifest says: build it again")
    return sources


def _stale(
    paths: Collection[str],
    wanted: Collection[str],
    changed: Sequence[str],
    kept: Collection[str],
    *,
    delete: bool,
) -> list[str]:
    """Files of ours that are in the way of what will be there: the card lists data by pattern, not by name."""
    configs = {place.split("/")[0] for place in [*kept, *changed]}
    found = []
    for path in sorted(paths):
        place = "/".join(path.split("/")[:2])
        left_over = delete and place not in kept and path.split("/")[0] in configs
        if path not in wanted and is_ours(path) and (place in changed or left_over):
            found.append(path)
    return found


def is_ours(path: str) -> bool:
    """Whether a path of a repository is that of a run's file."""
    return any(fnmatch.fnmatchcase(path, f"*/*/{pattern}") for pattern in _OURS)


def _merged_runs(there: Sequence[Row], local: Sequence[Sequence[Row]], manifest: Sequence[Row]) -> list[Row]:
    """The table of runs: what local folders say of a run counts, unless the run stays that the Hub's table is of."""

    def key(row: Row) -> tuple[Any, ...]:
        return row["environment"], row["run"], row["transitions"]

    kept = {(row["environment"], row["run"], row["rows"]) for row in manifest}
    runs: dict[tuple[Any, ...], Row] = {}
    for row in [*there, *(row for rows in local for row in rows)]:
        if row["kept"] or key(row) not in kept:
            runs[key(row)] = row
    finished = {(environment, run) for environment, run, transitions in runs if transitions is not None}
    listed = [row for row in runs.values() if row["transitions"] is not None or key(row)[:2] not in finished]
    listed = [row for row in listed if not row["kept"] or key(row) in kept]
    return sorted(listed, key=lambda row: (row["environment"], row["run"], row["transitions"] or 0))
