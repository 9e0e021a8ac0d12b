"""A Hugging Face Hub on the loopback interface, for tests of what uploads and downloads.

It speaks the part of the Hub's HTTP API which huggingface_hub, datasets and HfFileSystem ask for: accounts, repositories,
commits, trees, refs, Git LFS uploads and ranged downloads. Repositories live in memory, their blobs in a folder. It has no
Xet storage, pull requests, organizations or YAML validation.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from loopback.api import Api
from loopback.repositories import Blob, HubError, Repo


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
        read_only: Those of the tokens that may read only.

    Attributes:
        endpoint: The address, for HF_ENDPOINT.
        requests: The method and path (quoted, with the query) of every request so far.
        faults: What goes wrong, and how many times still, see `cut_after`, `fail` and `cut_upload`.
        repos: The repositories by kind ("models", "datasets" or "spaces") and id.
        page_size: The most entries of a page of a listing.
    """

    def __init__(self, folder: Path, tokens: dict[str, str], read_only: Collection[str] = ()):
        self.folder, self.tokens, self.read_only = folder, tokens, read_only
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.repos: dict[tuple[str, str], Repo] = {}
        self.page_size = 1000
        self.lock = threading.RLock()
        self.signature = secrets.token_hex(8)
        self.closed = False
        folder.mkdir(parents=True, exist_ok=True)
        self._server = Server(("127.0.0.1", 0), Api)
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


class Server(ThreadingHTTPServer):
    """The server of a Hub."""

    hub: LoopbackHub
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: what goes wrong here is a client that went away."""
