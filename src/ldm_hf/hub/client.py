"""Talking to the Hub: accounts, files and commits of repositories, and errors of one line that say what to do."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_hf.errors import DatasetFormatError, HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile


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

    @classmethod
    def of(cls, source: Path, path: str | None = None) -> "LocalFile":
        """A file as it is now, by default under its own name."""
        digest = hashlib.sha256()
        with source.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return cls(path or source.name, source, source.stat().st_size, digest.hexdigest())

    def is_among(self, there: "dict[str, RepoFile]") -> bool:
        """Whether the Hub has this content: by SHA-256 where it keeps a large file, by git's hash otherwise."""
        remote = there.get(self.path)
        if remote is None or remote.size != self.bytes:
            return False
        if remote.lfs is not None:
            return bool(remote.lfs.sha256 == self.sha256)
        content = self.source.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return bool(remote.blob_id == blob and hashlib.sha256(content).hexdigest() == self.sha256)


def check_account(api: "HfApi", namespace: str) -> None:
    """See that the token may write to a namespace; ``HubError`` if there is none, or it may not."""
    with hub_failures("the token of this machine"):
        account = api.whoami()
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError("the token may only read: set HF_TOKEN to one that may write, or run `hf auth login` with it")
    names = [account["name"], *(organisation["name"] for organisation in account.get("orgs", []))]
    if namespace.lower() not in (name.lower() for name in names):
        raise HubError(f"the token may not write to the namespace {namespace!r}; it may to {', '.join(names)}")


def newest_commit(api: "HfApi", name: str, kind: str) -> str | None:
    """The newest commit of a repository of a kind ("model" or "dataset"); None if there is no such repository."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return str(api.repo_info(name, repo_type=kind).sha)
    except RepositoryNotFoundError:
        return None


def remote_files(api: "HfApi", name: str, kind: str, revision: str | None = None) -> "dict[str, RepoFile]":
    """The files of a repository at a commit, by path."""
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(name, recursive=True, repo_type=kind, revision=revision)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def commit(
    api: "HfApi",
    name: str,
    kind: str,
    title: str,
    files: Sequence[LocalFile],
    stale: Sequence[str] = (),
    parent: str | None = None,
) -> None:
    """Add and delete files in one commit, on top of ``parent`` if it is given.

    Raises:
        DatasetFormatError: a file is not what its hash says; nothing is committed.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = []
    for file in files:
        operation = CommitOperationAdd(file.path, str(file.source))
        if operation.upload_info.sha256.hex() != file.sha256:
            raise DatasetFormatError(f"{file.source} has other content than its manifest says, or is being changed")
        operations.append(operation)
    operations += [CommitOperationDelete(path) for path in stale]
    api.create_commit(name, operations, commit_message=title, repo_type=kind, parent_commit=parent)


@contextlib.contextmanager
def hub_failures(subject: str) -> Iterator[None]:
    """Turn what the Hub's client raises into a ``HubError`` of one line that says what to do."""
    try:
        yield
    except Exception as error:
        found = _hub_error(subject, error)
        if found is None:
            raise
        raise found from error


def _hub_error(subject: str, error: BaseException | None) -> HubError | None:
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # of the HTTP client that this version of huggingface_hub uses

    if isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) and error.__cause__ is not None:
        return _hub_error(subject, error.__cause__)  # what the client wraps once more
    if isinstance(error, errors.LocalTokenNotFoundError):
        return HubError(f"{subject}: there is no token: run `hf auth login`, or set HF_TOKEN")
    if isinstance(error, errors.HFValidationError):
        return HubError(f"{subject} is not a name of a repository: {' '.join(str(error).split())}")
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "or it is private and no token that may read it is set (HF_TOKEN)"
        return HubError(f"{subject}: the Hub has no such repository, {hint}")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{subject}: the Hub has no such revision")
    if isinstance(error, errors.EntryNotFoundError | FileNotFoundError):
        return HubError(f"{subject}: the Hub's repository has no such file")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            return HubError(f"{subject}: the Hub refuses the token (HTTP {status}); set HF_TOKEN to one that may")
        return HubError(f"{subject}: the Hub answered HTTP {status}; try again")
    if isinstance(error, HTTPError | ConnectionError | TimeoutError):
        reason = " ".join(str(error).split()) or type(error).__name__
        return HubError(f"{subject}: the connection to the Hub broke ({reason}); try again")
    return None
