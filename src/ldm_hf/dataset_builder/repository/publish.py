"""Publishes dataset repositories to the Hub, beside what is there: nothing is sent twice, and what was sent is verified."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.hf_api import RepoFile

from ldm_hf.dataset_builder.format.schema import MANIFEST
from ldm_hf.dataset_builder.format.storage import repository_folders
from ldm_hf.dataset_builder.repository.card import NOTES_MARK
from ldm_hf.dataset_builder.repository.merging import Merged, Published, merge, read_description
from ldm_hf.dataset_builder.repository.repository import CARD, CURVES, RUNS, Description
from ldm_hf.errors import ConfigError, DatasetFormatError, HubError
from ldm_hf.hub.client import LocalFile, check_account, commit, hub_failures, newest_commit, remote_files

PREFIX = "ldm-"
"""Before a library's slug in the name of its repository."""

_BATCH_FILES, _BATCH_BYTES = 100, 2**31  # of one commit: what an interrupted upload has to send again, at most
_DESCRIBING = (RUNS, CURVES, CARD, MANIFEST)

Progress = Callable[[str, int, int], None]
"""Called with the repository, the bytes that are there, and the bytes that there will be."""


@dataclass(frozen=True)
class Change:
    """What publishing does to one repository of the Hub.

    Attributes:
        repository: its name.
        merged: what it will hold, and what will be gone.
        files: all that it will hold, its description last, but for the runs of earlier publishing that stay.
        there: what it holds now, by path; None if it does not exist.
    """

    repository: str
    merged: Merged
    files: list[LocalFile]
    there: dict[str, RepoFile] | None


Agree = Callable[[Sequence[Change]], None]
"""Called before anything is changed, if runs of the Hub are to be replaced or deleted; it raises where that shall not be."""


def refuse_losses(changes: Sequence[Change]) -> None:
    """Agree to nothing: raises ``ConfigError``."""
    replaced = sum(len(change.merged.replaced) for change in changes)
    deleted = sum(len(change.merged.deleted) for change in changes)
    files = sum(len(change.merged.stale) for change in changes)
    raise ConfigError(
        f"nothing was published: it would replace {replaced} runs of the Hub and delete {deleted}, {files} files in all; "
        "say --yes if that is wanted"
    )


def publish(
    root: Path,
    namespace: str,
    *,
    libraries: Sequence[str] | None = None,
    private: bool = False,
    delete: bool = False,
    agree: Agree = refuse_losses,
    progress: Progress = lambda repository, done, total: None,
) -> list[str]:
    """Bring datasets to the Hub, one repository per library: ``<namespace>/ldm-<library>``.

    Runs that were published before stay, and card and manifest list them all. Files that this package did not write are
    never touched. New data go first; one commit at the end replaces, deletes and describes, so that a reader never sees a
    manifest of files that are not there. Interrupted, the same call sends only what is missing.

    Args:
        root: data folder, a folder of data folders, or one repository.
        namespace: user or organisation.
        libraries: slugs; by default all. A library none of whose runs was kept has nothing to publish.
        private: of repositories that are made; those that are there stay as they are.
        delete: whether runs of the Hub that no folder has are deleted.
        agree: asked before runs of the Hub are replaced or deleted.
        progress: told how much is there.

    Returns:
        Names of the repositories.

    Raises:
        DatasetFormatError: there are no datasets, or a file is not what its manifest says.
        ConfigError: runs of the Hub would be lost, and ``agree`` was not given.
        HubError: the Hub refuses, cannot be reached, or holds something else afterwards.
    """
    by_library: dict[str, list[Path]] = {}
    for folder in repository_folders(root):
        slug = folder.resolve().name
        if (libraries is None or slug in libraries) and read_description(folder).manifest:
            by_library.setdefault(slug, []).append(folder)
    if not by_library:
        raise DatasetFormatError(
            f"{root} holds no datasets: no <library>/{MANIFEST} under it lists a run that was kept"
        )
    api = HfApi()
    check_account(api, namespace)
    with tempfile.TemporaryDirectory() as scratch:
        changes = []
        for slug, folders in by_library.items():
            name = f"{namespace}/{PREFIX}{slug}"
            with hub_failures(name):
                changes.append(_plan(api, name, slug, folders, Path(scratch), delete=delete))
        if any(change.merged.loses for change in changes):
            agree(changes)
        for change in changes:
            with hub_failures(change.repository):
                if change.there is None:
                    api.create_repo(change.repository, repo_type="dataset", private=private, exist_ok=True)
                _send(api, change, progress)
    return [change.repository for change in changes]


def _plan(api: HfApi, name: str, slug: str, folders: Sequence[Path], scratch: Path, *, delete: bool) -> Change:
    folder = scratch / slug
    folder.mkdir()
    head = newest_commit(api, name, "dataset")
    there = None if head is None else remote_files(api, name, "dataset", head)
    published, notes = _read_published(name, head, there or {})
    merged = merge(folders, published, delete=delete)
    merged.description.write(folder, slug, notes)
    described = [folder / path for path in _DESCRIBING if (folder / path).is_file()]
    files = [LocalFile.of(path) for path in described]
    return Change(name, merged, merged.files + files, there)


def _read_published(name: str, head: str | None, there: Mapping[str, RepoFile]) -> tuple[Published, str]:
    """What the Hub's repository says of itself, and what its owner wrote below its card."""
    if MANIFEST not in there:
        foreign = [path for path in _DESCRIBING if path in there]
        if foreign:
            raise HubError(
                f"{name} has {foreign[0]}, which ldm did not write, since there is no {MANIFEST}: remove it there first"
            )
        return Published(Description([], []), there), ""
    listed = [path for path in _DESCRIBING if path in there]
    local = {path: Path(hf_hub_download(name, path, repo_type="dataset", revision=head)) for path in listed}
    try:
        description = read_description(local[MANIFEST].parent)
    except DatasetFormatError as error:
        raise DatasetFormatError(f"{name} on the Hub: {error}; choose another namespace, or remove it there") from error
    card = local[CARD].read_text(encoding="utf-8") if CARD in local else ""
    return Published(description, there), card.partition(NOTES_MARK)[2]


def _send(api: HfApi, change: Change, progress: Progress) -> None:
    name, there = change.repository, change.there or {}
    missing = [file for file in change.files if not file.is_among(there)]
    total = sum(file.bytes for file in change.files)
    done = total - sum(file.bytes for file in missing)
    progress(name, done, total)
    new = [file for file in missing if file.path not in there and file.path not in _DESCRIBING]
    for batch in _batches(new):
        commit(api, name, "dataset", f"Add {len(batch)} files", batch)
        done += sum(file.bytes for file in batch)
        progress(name, done, total)
    last = [file for file in missing if file not in new]
    if last or change.merged.stale:
        parent = _unchanged_head(api, name, there)
        commit(api, name, "dataset", "Describe the dataset", last, change.merged.stale, parent)
        progress(name, total, total)
    found = remote_files(api, name, "dataset")
    wrong = [file.path for file in change.files if not file.is_among(found)]
    if wrong:
        raise HubError(
            f"{name}: the Hub holds other content than the manifest says of {', '.join(wrong[:3])}"
            f"{' and more' * (len(wrong) > 3)}; build these runs again, or publish again"
        )


def _unchanged_head(api: HfApi, name: str, there: Mapping[str, RepoFile]) -> str:
    """The newest commit, if its manifest is still the one that was merged."""
    head = str(newest_commit(api, name, "dataset"))
    found = api.get_paths_info(name, [MANIFEST], revision=head, repo_type="dataset")
    blobs = [file.blob_id for file in (*found, there.get(MANIFEST)) if isinstance(file, RepoFile)]
    if len(blobs) == 1 or len(set(blobs)) > 1:
        raise HubError(
            f"{name}: another process published to it meanwhile; the same command merges with what is there now"
        )
    return head


def _batches(files: Sequence[LocalFile]) -> Iterator[list[LocalFile]]:
    batch: list[LocalFile] = []
    for file in files:
        if batch and (len(batch) == _BATCH_FILES or sum(each.bytes for each in batch) + file.bytes > _BATCH_BYTES):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch
