"""One connection of a client: requests, routes, permissions, answers, and what goes wrong on purpose."""

from __future__ import annotations

import io
import json
import re
import secrets
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from loopback.repositories import HubError, Repo

if TYPE_CHECKING:
    from loopback.hub import Server

CHUNK = 64 * 2**10
_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any], bool]] = []
API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
GIT = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+?)"
_WITHOUT_OWNER = r"/api/(models|datasets|spaces)/[^/]+(/(revision|tree)/.+)?|/((datasets|spaces)/)?[^/]+/resolve/.+"


def route(method: str, pattern: str, write: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark what answers a request: it is given the pattern's groups, `repo` found and checked for permission."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _ROUTES.append((method, re.compile(pattern), function, write))
        return function

    return register


class Connection(BaseHTTPRequestHandler):
    """One connection of a client. An answering method returns what to send as JSON, or None if it has answered."""

    server: Server
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
                self.role = "read" if token in self.hub.read_only else "write"
                if write and self.role == "read" and "whoami" not in path:
                    raise HubError(403, "This token has no right to write")
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
