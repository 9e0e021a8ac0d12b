"""Where dataset repositories lie: folders, and repositories of the Hub, read over the network or from its cache."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from ldm_hf.dataset_builder.format.schema import MANIFEST
from ldm_hf.errors import DatasetFormatError
from ldm_hf.hub.client import hub_failures

HUB = "hf://"
_HUB_DATASETS = f"{HUB}datasets/"


class Storage(ABC):
    """One dataset repository."""

    name: str

    @abstractmethod
    def open(self, path: str) -> Any:
        """A seekable binary file, to be closed; ``DatasetFormatError`` if there is none of that path."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Size of a file in bytes where that costs nothing; ``DatasetFormatError`` if it is not there."""

    @abstractmethod
    def paths(self) -> list[str]:
        """Paths of all files, sorted."""

    def inside(self, path: Any) -> str:
        """A path that a manifest gives; ``DatasetFormatError`` if it is none, or leads out of the repository."""
        if not isinstance(path, str) or not is_inside(path):
            raise DatasetFormatError(
                f"{self.where(MANIFEST)} lists {path!r}, which is not a path within the repository"
            )
        return path

    def where(self, path: str) -> str:
        """How messages name a file."""
        return f"{self.name}/{path}"

    def read(self, path: str, use: Callable[[Any], Any]) -> Any:
        """What ``use`` makes of the open file."""
        with self.open(path) as file:
            return use(file)


class FolderStorage(Storage):
    """A folder."""

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        self._folder = folder
        self.name = str(folder)

    def open(self, path: str) -> Any:
        """Map a file of the folder into memory: what is read of it is not copied."""
        try:
            return pa.memory_map(str(self._folder / self.inside(path)))
        except FileNotFoundError as error:
            raise DatasetFormatError(f"{self.where(path)} is missing") from error

    def size(self, path: str) -> int:
        """Size of a file of the folder."""
        try:
            return (self._folder / self.inside(path)).stat().st_size
        except FileNotFoundError as error:
            raise DatasetFormatError(f"{self.where(path)} is missing") from error

    def paths(self) -> list[str]:
        """Paths of all files of the folder."""
        return sorted(path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if path.is_file())


class HubStorage(Storage):
    """A dataset repository of the Hub at one commit, which is looked up once, so that it cannot change while it is read."""

    def __init__(self, address: str, cached: bool) -> None:
        """Name the repository.

        Args:
            address: ``hf://datasets/<namespace>/<name>``, and ``@<revision>`` if it is not the newest.
            cached: whether whole files are downloaded to the Hub's cache when they are first used.

        Raises:
            DatasetFormatError: the address is none.
        """
        path, _, self._revision = address.removeprefix(_HUB_DATASETS).rstrip("/").partition("@")
        if not address.startswith(_HUB_DATASETS) or path.count("/") != 1:
            raise DatasetFormatError(
                f"{address} is not an address of a dataset: it should read {_HUB_DATASETS}<namespace>/<name>"
            )
        self.repository = path
        self.name = address.rstrip("/")
        self._cached = cached

    @cached_property
    def commit(self) -> str:
        """The commit that is read."""
        from huggingface_hub import HfApi

        with hub_failures(self.name):
            return str(HfApi().dataset_info(self.repository, revision=self._revision or None).sha)

    def open(self, path: str) -> Any:
        """Open a file of the repository."""
        from huggingface_hub import hf_hub_download

        self.inside(path)
        with hub_failures(self.where(path)):
            if self._cached:
                local = hf_hub_download(self.repository, path, repo_type="dataset", revision=self.commit)
                return pa.memory_map(local)
            return self._filesystem.open(f"datasets/{self.repository}@{self.commit}/{path}", cache_type="none")

    def size(self, path: str) -> None:
        """Unknown: asking costs a request."""
        self.inside(path)

    def paths(self) -> list[str]:
        """Paths of all files of the repository."""
        from huggingface_hub import HfApi

        with hub_failures(self.name):
            return sorted(HfApi().list_repo_files(self.repository, repo_type="dataset", revision=self.commit))

    def read(self, path: str, use: Callable[[Any], Any]) -> Any:
        """What ``use`` makes of the open file; ``HubError`` if the network keeps breaking it: the client tries again."""
        with hub_failures(self.where(path)), self.open(path) as file:
            return use(file)

    @cached_property
    def _filesystem(self) -> Any:
        from huggingface_hub import HfFileSystem

        return HfFileSystem()


def open_storages(data: str | Path, cached: bool = True) -> list[Storage]:
    """The repositories at a place: that of a Hub address, or of a folder, or those in a folder of repositories, or of such.

    Raises:
        DatasetFormatError: there are none.
    """
    if str(data).startswith(HUB):
        return [HubStorage(str(data), cached)]
    return [FolderStorage(folder) for folder in repository_folders(Path(data))]


def repository_folders(root: Path) -> list[Path]:
    """The repositories in a folder: itself, or those in a data folder, or those in a folder of data folders.

    Raises:
        DatasetFormatError: there are none.
    """
    depths = (MANIFEST, f"*/{MANIFEST}", f"*/*/{MANIFEST}")
    manifests = next(filter(None, (sorted(root.glob(depth)) for depth in depths)), [])
    if not manifests:
        raise DatasetFormatError(f"{root} holds no datasets: there is no <library>/{MANIFEST} under it")
    return [manifest.parent for manifest in manifests]


def is_inside(path: str) -> bool:
    """Whether a path stays within the folder that it is relative to."""
    parts = path.split("/")
    plain = not PurePosixPath(path).is_absolute() and "\\" not in path and "\0" not in path
    return plain and all(part not in ("", ".", "..") for part in parts)
