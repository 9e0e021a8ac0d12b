"""What a Hub keeps: repositories, commits, files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any


class HubError(Exception):
    """An answer of the Hub that is an error, with the codes which its clients turn into exceptions."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None, **body: str):
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


@dataclass(frozen=True)
class Blob:
    """A stored file: its bytes lie under their sha256, `oid` is the git blob id of the content or LFS pointer."""

    sha256: str
    size: int
    oid: str
    pointer_size: int | None = None

    @property
    def etag(self) -> str:
        """What the Hub compares contents by: the sha256 of an LFS file, the git blob id of a regular one."""
        return self.oid if self.pointer_size is None else self.sha256

    @property
    def lfs(self) -> dict[str, Any]:
        """What both trees and repository infos tell of an LFS file, nothing of a regular one."""
        if self.pointer_size is None:
            return {}
        return {"lfs": {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": self.pointer_size}}


@dataclass(frozen=True)
class Commit:
    """A revision: its files are (blob, number of the commit that last changed it), by path."""

    oid: str
    number: int
    parent: int | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, tuple[Blob, int]]


@dataclass
class Repo:
    """A repository: its commits in the order of their numbers, and branches and tags that point to numbers."""

    kind: str
    id: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, int] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)

    @property
    def url_path(self) -> str:
        """The path of the repository's page, and of what lies below it."""
        return f"/{self.id}" if self.kind == "models" else f"/{self.kind}/{self.id}"

    def find(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a commit id (seven digits or more) names."""
        number = self.branches.get(revision, self.tags.get(revision))
        if number is not None:
            return self.commits[number]
        for commit in self.commits:
            if len(revision) >= 7 and commit.oid.startswith(revision):
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add(self, branch: str, files: dict[str, Blob], title: str, message: str, author: str) -> Commit:
        """Commit a complete set of files to a branch."""
        parent = self.commits[self.branches[branch]] if self.commits else None
        number, date, tree = len(self.commits), now(), {}
        for path, blob in files.items():
            before = parent.files.get(path) if parent else None
            tree[path] = before if before and before[0] == blob else (blob, number)
        identity = [number, self.id, title, message, author, date, sorted((p, b.oid) for p, b in files.items())]
        oid = hashlib.sha1(json.dumps(identity).encode()).hexdigest()
        commit = Commit(oid, number, parent.number if parent else None, title, message, author, date, tree)
        self.commits.append(commit)
        self.branches[branch] = number
        return commit

    def describe(self, commit: Commit, path: str, expand: bool) -> dict[str, Any] | None:
        """The tree entry of a file or folder, or None if there is none. A folder's oid is not git's tree id."""
        if path in commit.files:
            blob, changed = commit.files[path]
            entry: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path, **blob.lfs}
        else:
            below = [(name, *item) for name, item in sorted(commit.files.items()) if name.startswith(f"{path}/")]
            if not below:
                return None
            changed = max(number for _, _, number in below)
            oid = hashlib.sha1(repr([(name, blob.oid) for name, blob, _ in below]).encode()).hexdigest()
            entry = {"type": "directory", "oid": oid, "size": 0, "path": path}
        if expand:
            last = self.commits[changed]
            entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
        return entry


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
