"""Publishes dataset repositories to the Hub: what is there already is not sent again, and what was sent is verified."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from ldm_hf.dataset_builder.records import sha256
from ldm_hf.dataset_builder.repository import CARD, CURVES, RUNS
from ldm_hf.dataset_builder.schema import MANIFEST
from ldm_hf.dataset_builder.storage import hub_failures
from ldm_hf.errors import DatasetFormatError, HubError

PREFIX = "ldm-"
"""Before a library's slug in the name of its repository."""

_BATCH_FILES, _BATCH_BYTES = 100, 2**31  # of one commit: what an interrupted upload has to begin anew, at most
_OWN = (".gitattributes",)  # files of a repository that the Hub makes by itself

Progress = Callable[[str, int, int], None]
"""Called with the repository, the bytes that are there, and the bytes that there will be."""


@dataclass(frozen=True)
class LocalFile:
    """A file to be published.

    Attributes:
        path: in the repository.
        source: where it lies.
        bytes: its size.
        sha256: of its content, in hexadecimal.
    """

    path: str
    source: Path
    bytes: int
    sha256: str


def publish(
    root: Path,
    namespace: str,
    *,
    libraries: Sequence[str] | None = None,
    private: bool = False,
    progress: Progress = lambda repository, done, total: None,
) -> list[str]:
    """Bring the dataset repositories under a folder to the Hub, as ``<namespace>/ldm-<library>``.

    Data go first and the manifest last, so that a reader never sees a manifest of files that are not there. Interrupted,
    the same call sends only what is missing. Files that are no longer in the dataset are deleted.

    Args:
        root: data folder.
        namespace: user or organisation.
        libraries: slugs; by default all. A library none of whose runs was kept has nothing to publish.
        private: of repositories that are made; those that are there stay as they are.
        progress: told how much is there.

    Returns:
        Names of the repositories.

    Raises:
        DatasetFormatError: there are none, or a file is not what the manifest says.
        HubError: the Hub refuses, cannot be reached, or holds something else afterwards.
    """
    found = sorted(path.parent for path in root.glob(f"*/{MANIFEST}"))
    folders = [folder for folder in found if libraries is None or folder.name in libraries]
    folders = [folder for folder in folders if pq.read_metadata(folder / MANIFEST).num_rows]
    if not folders:
        raise DatasetFormatError(
            f"{root} holds no datasets: no <library>/{MANIFEST} under it lists a run that was kept"
        )
    api = HfApi()
    with hub_failures("the token of this machine"):
        api.whoami()
    names = []
    for folder in folders:
        name = f"{namespace}/{PREFIX}{folder.name}"
        with hub_failures(name):
            api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
            _publish(api, folder, name, progress)
        names.append(name)
    return names


def local_files(folder: Path) -> list[LocalFile]:
    """The files of a dataset repository, data first; ``DatasetFormatError`` if one is missing or of another size."""
    try:
        rows = pq.read_table(folder / MANIFEST, columns=["files"]).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetFormatError(f"{folder / MANIFEST} cannot be read as a manifest: {error}") from error
    files = []
    for entry in (entry for row in rows for entry in row["files"]):
        source = folder / entry["path"]
        if not source.is_file() or source.stat().st_size != entry["bytes"]:
            raise DatasetFormatError(f"{source} is missing or has another size than the manifest says: build it again")
        files.append(LocalFile(entry["path"], source, entry["bytes"], entry["sha256"]))
    described = [folder / name for name in (RUNS, CURVES, CARD, MANIFEST) if (folder / name).is_file()]
    return files + [LocalFile(path.name, path, path.stat().st_size, sha256(path)) for path in described]


def _publish(api: HfApi, folder: Path, name: str, progress: Progress) -> None:
    files = local_files(folder)
    there = _remote_files(api, name)
    missing = [file for file in files if not _is_there(file, there)]
    total = sum(file.bytes for file in files)
    done = total - sum(file.bytes for file in missing)
    progress(name, done, total)
    described = [file for file in missing if "/" not in file.path]
    for batch in _batches([file for file in missing if "/" in file.path]):
        _commit(api, name, f"Add {len(batch)} files", batch)
        done += sum(file.bytes for file in batch)
        progress(name, done, total)
    wanted = {file.path for file in files}
    stale = [path for path in there if path not in wanted and path not in _OWN]
    if described or stale:
        _commit(api, name, "Describe the dataset", described, stale)
        progress(name, total, total)
    there = _remote_files(api, name)
    wrong = [file.path for file in files if not _is_there(file, there)]
    if wrong:
        raise HubError(
            f"{name}: the Hub holds other content than the manifest says of {', '.join(wrong[:3])}"
            f"{' and more' * (len(wrong) > 3)}; build these runs again, or publish again"
        )


def _commit(api: HfApi, name: str, title: str, files: Sequence[LocalFile], stale: Sequence[str] = ()) -> None:
    operations: list[Any] = [CommitOperationAdd(file.path, str(file.source)) for file in files]
    operations += [CommitOperationDelete(path) for path in stale]
    api.create_commit(name, operations, commit_message=title, repo_type="dataset")


def _remote_files(api: HfApi, name: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(name, recursive=True, repo_type="dataset")
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _is_there(file: LocalFile, there: Mapping[str, RepoFile]) -> bool:
    """Whether the Hub has this content: by SHA-256 where it keeps the file as a large one, by git's hash otherwise."""
    remote = there.get(file.path)
    if remote is None or remote.size != file.bytes:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == file.sha256)
    content = file.source.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return bool(remote.blob_id == blob and hashlib.sha256(content).hexdigest() == file.sha256)


def _batches(files: Sequence[LocalFile]) -> Iterator[list[LocalFile]]:
    batch: list[LocalFile] = []
    for file in files:
        if batch and (len(batch) == _BATCH_FILES or sum(each.bytes for each in batch) + file.bytes > _BATCH_BYTES):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch
