"""A Hugging Face Hub on the loopback interface, for tests of what uploads and downloads.

It speaks the part of the Hub's HTTP API which huggingface_hub, datasets and HfFileSystem ask for: accounts,
repositories, commits, trees, refs, Git LFS uploads and ranged downloads. Repositories live in memory, their blobs in
a folder. It has no Xet storage, pull requests, organizations or YAML validation.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import io
import json
import re
import secrets
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

LFS_PATTERNS = ("*.parquet", "*.safetensors", "*.png")
LFS_THRESHOLD = 10 * 2**20
CHUNK = 64 * 2**10


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
        number, date, tree = len(self.commits), _now(), {}
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


@dataclass
class Fault:
    """Something that goes wrong `times` times: a failed request, a cut download or a cut upload."""

    kind: str
    method: str
    path_substring: str
    value: int
    times: int


class LoopbackHub:
    """A Hub on a free port of 127.0.0.1 that serves while its context is entered.

    Args:
        folder: Where the blobs are kept.
        tokens: The user name of every token that is accepted. A user may write to `<user name>/...` only.

    Attributes:
        endpoint: The address, for HF_ENDPOINT.
        requests: The method and path (quoted, with the query) of every request so far.
        faults: What goes wrong, and how many times still, see `cut_after`, `fail` and `cut_upload`.
        repos: The repositories by kind ("models", "datasets" or "spaces") and id.
        page_size: The most entries of a page of a listing.
    """

    def __init__(self, folder: Path, tokens: dict[str, str]):
        self.folder, self.tokens = folder, tokens
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.repos: dict[tuple[str, str], Repo] = {}
        self.page_size = 1000
        self.lock = threading.RLock()
        self.signature = secrets.token_hex(8)
        self.closed = False
        folder.mkdir(parents=True, exist_ok=True)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.closed = True

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The variables to lay over a client's environment: this Hub, and nothing from the user's own home."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_TOKEN": token or "",
            "HUGGING_FACE_HUB_TOKEN": "",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def cut_after(self, path_substring: str, nbytes: int, times: int = 1) -> None:
        """Close the connection after `nbytes` of the body of the next GETs whose unquoted path matches."""
        self.faults.append(Fault("cut", "GET", path_substring, nbytes, times))

    def fail(self, method: str, path_substring: str, status: int, times: int = 1) -> None:
        """Answer the next requests of that method whose unquoted path matches with a status, and do nothing else."""
        self.faults.append(Fault("fail", method, path_substring, status, times))

    def cut_upload(self, times: int = 1) -> None:
        """Close the connection in the middle of the next uploads of LFS objects, which are not stored."""
        self.faults.append(Fault("cut", "PUT", "/lfs-uploads/", 0, times))

    def take_fault(self, kind: str, method: str, path: str) -> int | None:
        """The value of a fault that hits this request, which is used up by it, or None."""
        with self.lock:
            for fault in self.faults:
                if (fault.kind, fault.method) == (kind, method) and fault.path_substring in path and fault.times > 0:
                    fault.times -= 1
                    return fault.value
        return None

    def store(self, chunks: Iterator[bytes], expected: str | None = None) -> str:
        """Keep bytes under their sha256, and return it."""
        digest, partial = hashlib.sha256(), self.folder / f".{secrets.token_hex(8)}"
        try:
            with partial.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if expected not in (None, digest.hexdigest()):
                raise HubError(400, "The content does not have the announced sha256")
            partial.replace(self.folder / digest.hexdigest())
        finally:
            partial.unlink(missing_ok=True)
        return digest.hexdigest()

    def regular_blob(self, content: bytes) -> Blob:
        """Store a file that is kept in git itself."""
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return Blob(self.store(iter([content])), len(content), oid)

    def lfs_blob(self, sha256: str) -> Blob:
        """The file of an LFS object that has been stored."""
        size = (self.folder / sha256).stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
        return Blob(sha256, size, oid, len(pointer))


class _Server(ThreadingHTTPServer):
    """The server of a Hub."""

    hub: LoopbackHub
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: what goes wrong here is a client that went away."""


_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any], bool]] = []
_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
_GIT = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+?)"
_WITHOUT_OWNER = r"/api/(models|datasets|spaces)/[^/]+(/(revision|tree)/.+)?|/((datasets|spaces)/)?[^/]+/resolve/.+"


def _route(method: str, pattern: str, write: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark what answers a request: it is given the pattern's groups, `repo` found and checked for permission."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _ROUTES.append((method, re.compile(pattern), function, write))
        return function

    return register


def _now() -> str:
    """The time as the Hub writes it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client. An answering method returns what to send as JSON, or None if it has answered."""

    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Keep quiet, `LoopbackHub.requests` is the log."""

    def answer(self) -> None:
        """Answer a request of any method."""
        self.hub, self.chunks, self.extra_headers = self.server.hub, self.read_body(), dict[str, str]()
        if self.hub.closed:  # a connection that the client has kept open
            self.close_connection = True
            return
        self.hub.requests.append((self.command, self.path))
        url, plain = urlsplit(self.path), unquote(self.path)
        self.query = parse_qs(url.query)
        try:
            if (status := self.hub.take_fault("fail", self.command, plain)) is not None:
                raise HubError(status, "Injected fault")
            if self.command == "PUT" and self.hub.take_fault("cut", "PUT", plain) is not None:
                next(self.chunks, None)
                self.close_connection = True
                return
            result = self.find_route(url.path)
            status, headers = 200, self.extra_headers
        except HubError as error:
            result, status, headers = error.body, error.status, error.headers
        except ConnectionError:
            raise
        except Exception:
            traceback.print_exc()
            result, status, headers = {"error": traceback.format_exc()}, 500, {}
        if result is not None:
            for _ in self.chunks:  # what is left of a body would be taken for the connection's next request
                pass
            body = json.dumps(result).encode()
            self.send(status, {**headers, "Content-Type": "application/json"}, io.BytesIO(body), len(body))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def find_route(self, path: str) -> Any:
        """Check the token and call the method that answers the path."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme and token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        self.user = self.hub.tokens.get(token)
        for method, pattern, function, write in _ROUTES:
            if method == ("GET" if self.command == "HEAD" else self.command) and (match := pattern.fullmatch(path)):
                parts: dict[str, Any] = {name: unquote(text) for name, text in match.groupdict().items() if text}
                if "repo" in parts:
                    parts["repo"] = self.find_repo(parts.pop("kind", "models"), parts["repo"], write)
                elif self.user is None and write:
                    raise HubError(401, "Invalid username or password.")
                return function(self, **parts)
        code = "RepoNotFound" if re.fullmatch(_WITHOUT_OWNER, path) else ""
        raise HubError(404, f"Not on the loopback Hub: {self.command} {path}", code)

    def find_repo(self, kind: str, name: str, write: bool) -> Repo:
        """A repository that the user may read, or write."""
        repo, owner = self.hub.repos.get((kind, name)), name.partition("/")[0]
        if repo is None or (repo.private and self.user != owner):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and self.user != owner:
            code = "" if self.user else "RepoNotFound"
            raise HubError(403 if self.user else 401, f"You have no right to write to {name}", code)
        return repo

    def read_body(self) -> Iterator[bytes]:
        """The body of the request, piece by piece."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        left = int(self.headers.get("Content-Length", 0))
        while left:
            chunk = self.rfile.read(min(left, CHUNK))
            if not chunk:
                raise ConnectionResetError("The client went away in the middle of a body")
            left -= len(chunk)
            yield chunk

    def read_json(self) -> dict[str, Any]:
        """The body of the request, which is a JSON object."""
        body: dict[str, Any] = json.loads(b"".join(self.chunks) or b"{}")
        return body

    def send(self, status: int, headers: dict[str, str], body: BinaryIO, length: int) -> None:
        """Send an answer, or the part of it that a fault lets through."""
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(length), "X-Request-Id": secrets.token_hex(8)}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.take_fault("cut", "GET", unquote(self.path)) if self.command == "GET" else None
        left = length if cut is None else min(cut, length)
        while left:
            chunk = body.read(min(left, CHUNK))
            self.wfile.write(chunk)
            left -= len(chunk)
        self.close_connection = self.close_connection or cut is not None

    def page(self, items: list[Any]) -> list[Any]:
        """The page of a listing that the query asks for, with a Link header if there is a next one."""
        start, size = int(self.query.get("cursor", ["0"])[0]), self.hub.page_size
        if len(items) > start + size:
            query = urlencode({**self.query, "cursor": start + size}, doseq=True)
            self.extra_headers["Link"] = f'<{self.hub.endpoint}{urlsplit(self.path).path}?{query}>; rel="next"'
        return items[start : start + size]

    def asks(self, name: str) -> bool:
        """Whether a switch of the query is on."""
        return self.query.get(name, [""])[0].lower() in ("true", "1")

    @_route("GET", "/api/whoami-v2", write=True)
    def whoami(self) -> Any:
        access = {"displayName": "loopback", "role": "write"}
        auth = {"type": "access_token", "accessToken": access}
        return {"type": "user", "id": self.user, "name": self.user, "fullname": self.user, "orgs": [], "auth": auth}

    @_route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> Any:
        return {"errors": [], "warnings": []}

    @_route("POST", "/api/repos/create", write=True)
    def create_repo(self) -> Any:
        asked = self.read_json()
        owner, kind = asked.get("organization") or self.user or "", f"{asked.get('type') or 'model'}s"
        if owner != self.user:
            raise HubError(403, f"You have no right to create a repository in the namespace {owner}")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo = Repo(kind, f"{owner}/{asked['name']}", private)
        url = self.hub.endpoint + repo.url_path
        with self.hub.lock:
            if (kind, repo.id) in self.hub.repos:
                raise HubError(409, "You already created this repository", url=url)  # clients use the address
            attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
            files = {".gitattributes": self.hub.regular_blob(attributes.encode())}
            repo.add("main", files, "initial commit", "", owner)
            self.hub.repos[kind, repo.id] = repo
        return {"url": url, "name": repo.id, "id": repo.id}

    @_route("DELETE", "/api/repos/delete", write=True)
    def delete_repo(self) -> Any:
        asked = self.read_json()
        name = f"{asked.get('organization') or self.user}/{asked['name']}"
        repo = self.find_repo(f"{asked.get('type') or 'model'}s", name, write=True)
        del self.hub.repos[repo.kind, repo.id]
        return {}

    @_route("GET", _API + "(?:/revision/(?P<revision>[^/]+))?")
    def info(self, repo: Repo, revision: str = "main") -> Any:
        commit = repo.find(revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        for sibling in siblings if self.asks("blobs") else []:
            blob = commit.files[sibling["rfilename"]][0]
            sibling |= {"size": blob.size, "blobId": blob.oid, **blob.lfs}
        facts: dict[str, Any] = {"id": repo.id, "author": repo.id.partition("/")[0], "sha": commit.oid}
        facts |= {"lastModified": commit.date, "createdAt": repo.commits[0].date, "private": repo.private}
        facts |= {"gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
        expand = self.query.get("expand", []) + self.query.get("expand[]", [])
        return {name: fact for name, fact in facts.items() if not expand or name in ("id", *expand)}

    @_route("GET", _API + "/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
    def tree(self, repo: Repo, revision: str, path: str = "") -> Any:
        commit, prefix, found = repo.find(revision), f"{path}/" if path else "", set[str]()
        for name in commit.files:
            if name.startswith(prefix):
                parts = name[len(prefix) :].split("/")
                depths = range(1, len(parts) + 1) if self.asks("recursive") else [1]
                found.update(prefix + "/".join(parts[:depth]) for depth in depths)
        if path and not found:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        return [repo.describe(commit, name, self.asks("expand")) for name in self.page(sorted(found))]

    @_route("POST", _API + "/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, repo: Repo, revision: str) -> Any:
        asked, commit = parse_qs(b"".join(self.chunks).decode()), repo.find(revision)
        expand = asked.get("expand", [""])[0].lower() == "true"
        entries = [repo.describe(commit, path.strip("/"), expand) for path in asked.get("paths", [])]
        return [entry for entry in entries if entry is not None]

    @_route("GET", _API + "/refs")
    def refs(self, repo: Repo) -> Any:
        def listed(kind: str, refs: dict[str, int]) -> list[dict[str, str]]:
            ids = {name: repo.commits[number].oid for name, number in refs.items()}
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in ids.items()]

        branches, tags = listed("heads", repo.branches), listed("tags", repo.tags)
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}

    @_route("GET", _API + "/commits/(?P<revision>[^/]+)")
    def history(self, repo: Repo, revision: str) -> Any:
        commit, history = repo.find(revision), []
        while True:
            entry = {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date}
            history.append({**entry, "authors": [{"user": commit.author}]})
            if commit.parent is None:
                return self.page(history)
            commit = repo.commits[commit.parent]

    @_route("POST", _API + "/(?P<what>branch|tag)/(?P<name>[^/]+)", write=True)
    def create_ref(self, repo: Repo, what: str, name: str) -> Any:
        asked = self.read_json()
        start, name = (name, asked["tag"]) if what == "tag" else (asked.get("startingPoint") or "main", name)
        refs = repo.tags if what == "tag" else repo.branches
        if name in refs:
            raise HubError(409, f"Reference already exists: {name}")
        refs[name] = repo.find(start).number
        return {}

    @_route("DELETE", _API + "/(?P<what>branch|tag)/(?P<name>[^/]+)", write=True)
    def delete_ref(self, repo: Repo, what: str, name: str) -> Any:
        if (repo.tags if what == "tag" else repo.branches).pop(name, None) is None:
            raise HubError(404, f"Reference does not exist: {name}", "RevisionNotFound")
        return {}

    @_route("POST", _API + "/preupload/(?P<revision>[^/]+)", write=True)
    def preupload(self, repo: Repo, revision: str) -> Any:
        commit, patterns, answers = repo.find(revision), [], []
        if ".gitattributes" in commit.files:
            lines = (self.hub.folder / commit.files[".gitattributes"][0].sha256).read_text().splitlines()
            patterns = [line.split()[0] for line in lines if "filter=lfs" in line.split()]
        for file in self.read_json()["files"]:
            path = file["path"]
            names = (path, PurePosixPath(path).name)
            lfs = file["size"] >= LFS_THRESHOLD or any(fnmatch.fnmatch(n, p) for n in names for p in patterns)
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if path in commit.files:
                answer["oid"] = commit.files[path][0].etag
            answers.append(answer)
        return {"files": answers}

    @_route("POST", _GIT + r"\.git/info/lfs/objects/batch", write=True)
    def lfs_batch(self, repo: Repo) -> Any:
        objects = []
        for asked in self.read_json()["objects"]:
            item = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in repo.objects:
                upload = f"{self.hub.endpoint}/lfs-uploads/{repo.kind}/{repo.id}/{asked['oid']}"
                verify = f"{self.hub.endpoint}{repo.url_path}.git/info/lfs/objects/verify"
                actions = {"upload": f"{upload}?signature={self.hub.signature}", "verify": verify}
                item["actions"] = {name: {"href": href} for name, href in actions.items()}
            objects.append(item)
        return {"transfer": "basic", "objects": objects}

    @_route("PUT", "/lfs-uploads/(?P<kind>[^/]+)/(?P<target>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, kind: str, target: str, oid: str) -> Any:
        if self.query.get("signature") != [self.hub.signature]:  # clients send no token to a signed address
            raise HubError(403, "The signature is wrong")
        self.hub.store(self.chunks, expected=oid)
        self.hub.repos[kind, target].objects.add(oid)
        return {}

    @_route("POST", _GIT + r"\.git/info/lfs/objects/verify", write=True)
    def lfs_verify(self, repo: Repo) -> Any:
        asked = self.read_json()
        if asked["oid"] not in repo.objects or self.hub.lfs_blob(asked["oid"]).size != asked["size"]:
            raise HubError(404, "The object has not been uploaded")
        return {}

    @_route("POST", _API + "/commit/(?P<revision>[^/]+)", write=True)
    def commit(self, repo: Repo, revision: str) -> Any:
        lines = [json.loads(line) for line in b"".join(self.chunks).splitlines() if line]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if self.asks("create_pr"):
            raise HubError(400, "The loopback Hub has no pull requests")
        with self.hub.lock:
            if revision not in repo.branches:
                raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            head = repo.find(revision)
            if not head.oid.startswith(header.get("parentCommit") or ""):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = {path: blob for path, (blob, _) in head.files.items()}
            for line in lines:
                self.apply(repo, files, line["key"], line["value"])
            new = repo.add(revision, files, header["summary"], header.get("description", ""), self.user or "")
        url = f"{self.hub.endpoint}{repo.url_path}/commit/{new.oid}"
        return {"success": True, "commitOid": new.oid, "commitUrl": url, "hookOutput": ""}

    def apply(self, repo: Repo, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        """Apply one operation of a commit to its files."""
        path = value.get("path", "").rstrip("/")
        if key == "file":
            files[path] = self.hub.regular_blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in repo.objects:
                raise HubError(400, f"The LFS object {value['oid']} of {path} has not been uploaded")
            files[path] = self.hub.lfs_blob(value["oid"])
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if name == path or (key != "deletedFile" and name.startswith(f"{path}/"))]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        elif key != "header":
            raise HubError(400, f"The loopback Hub does not know the operation {key}")

    @_route("GET", _GIT + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, repo: Repo, revision: str, path: str) -> None:
        commit = repo.find(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        blob = commit.files[path][0]
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
        status, start, end = 200, 0, blob.size
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = match.groups()
            start = int(first) if first else max(blob.size - int(last or 0), 0)
            end = min(int(last) + 1, blob.size) if first and last else blob.size
            if start >= end:
                raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{blob.size}"})
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{blob.size}"
        with (self.hub.folder / blob.sha256).open("rb") as body:
            body.seek(start)
            self.send(status, headers, body, end - start)
