"""The part of the Hub's API that huggingface_hub, datasets and HfFileSystem ask for."""

from __future__ import annotations

import base64
import fnmatch
import json
import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs

from loopback.connection import API, GIT, Connection, route
from loopback.repositories import Blob, HubError, Repo

LFS_PATTERNS = ("*.parquet", "*.safetensors", "*.png")
LFS_THRESHOLD = 10 * 2**20


class Api(Connection):
    """Answers: a method returns what to send as JSON, or None if it has answered."""

    @route("GET", "/api/whoami-v2", write=True)
    def whoami(self) -> Any:
        access = {"displayName": "loopback", "role": self.role}
        auth = {"type": "access_token", "accessToken": access}
        return {"type": "user", "id": self.user, "name": self.user, "fullname": self.user, "orgs": [], "auth": auth}

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> Any:
        return {"errors": [], "warnings": []}

    @route("POST", "/api/repos/create", write=True)
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

    @route("DELETE", "/api/repos/delete", write=True)
    def delete_repo(self) -> Any:
        asked = self.read_json()
        name = f"{asked.get('organization') or self.user}/{asked['name']}"
        repo = self.find_repo(f"{asked.get('type') or 'model'}s", name, write=True)
        del self.hub.repos[repo.kind, repo.id]
        return {}

    @route("GET", API + "(?:/revision/(?P<revision>[^/]+))?")
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

    @route("GET", API + "/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
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

    @route("POST", API + "/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, repo: Repo, revision: str) -> Any:
        asked, commit = parse_qs(b"".join(self.chunks).decode()), repo.find(revision)
        expand = asked.get("expand", [""])[0].lower() == "true"
        entries = [repo.describe(commit, path.strip("/"), expand) for path in asked.get("paths", [])]
        return [entry for entry in entries if entry is not None]

    @route("GET", API + "/refs")
    def refs(self, repo: Repo) -> Any:
        def listed(kind: str, refs: dict[str, int]) -> list[dict[str, str]]:
            ids = {name: repo.commits[number].oid for name, number in refs.items()}
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in ids.items()]

        branches, tags = listed("heads", repo.branches), listed("tags", repo.tags)
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}

    @route("GET", API + "/commits/(?P<revision>[^/]+)")
    def history(self, repo: Repo, revision: str) -> Any:
        commit, history = repo.find(revision), []
        while True:
            entry = {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date}
            history.append({**entry, "authors": [{"user": commit.author}]})
            if commit.parent is None:
                return self.page(history)
            commit = repo.commits[commit.parent]

    @route("POST", API + "/(?P<what>branch|tag)/(?P<name>[^/]+)", write=True)
    def create_ref(self, repo: Repo, what: str, name: str) -> Any:
        asked = self.read_json()
        start, name = (name, asked["tag"]) if what == "tag" else (asked.get("startingPoint") or "main", name)
        refs = repo.tags if what == "tag" else repo.branches
        if name in refs:
            raise HubError(409, f"Reference already exists: {name}")
        refs[name] = repo.find(start).number
        return {}

    @route("DELETE", API + "/(?P<what>branch|tag)/(?P<name>[^/]+)", write=True)
    def delete_ref(self, repo: Repo, what: str, name: str) -> Any:
        if (repo.tags if what == "tag" else repo.branches).pop(name, None) is None:
            raise HubError(404, f"Reference does not exist: {name}", "RevisionNotFound")
        return {}

    @route("POST", API + "/preupload/(?P<revision>[^/]+)", write=True)
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

    @route("POST", GIT + r"\.git/info/lfs/objects/batch", write=True)
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

    @route("PUT", "/lfs-uploads/(?P<kind>[^/]+)/(?P<target>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, kind: str, target: str, oid: str) -> Any:
        if self.query.get("signature") != [self.hub.signature]:  # clients send no token to a signed address
            raise HubError(403, "The signature is wrong")
        self.hub.store(self.chunks, expected=oid)
        self.hub.repos[kind, target].objects.add(oid)
        return {}

    @route("POST", GIT + r"\.git/info/lfs/objects/verify", write=True)
    def lfs_verify(self, repo: Repo) -> Any:
        asked = self.read_json()
        if asked["oid"] not in repo.objects or self.hub.lfs_blob(asked["oid"]).size != asked["size"]:
            raise HubError(404, "The object has not been uploaded")
        return {}

    @route("POST", API + "/commit/(?P<revision>[^/]+)", write=True)
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

    @route("GET", GIT + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
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
