"""What an isolated installation of a library offers: the same, whether in a virtual environment or in a container."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol
from urllib.parse import unquote

from ldm_hf.env_registry.library.manifest import Manifest

WORKER_VARIABLES = {
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "SDL_AUDIODRIVER": "dummy",
    "SDL_VIDEODRIVER": "dummy",
}
"""Environment variables of every worker; a manifest's own come on top."""


@dataclass(frozen=True)
class Limits:
    """What a worker may use.

    Attributes:
        memory: bytes.
        cpus: processors; a virtual environment does not hold to it.
        processes: processes and threads; a virtual environment does not hold to it.
        file_size: bytes of the largest file that it may write.
        tmp_size: bytes of its /tmp; a virtual environment does not hold to it.
    """

    memory: int = 4 << 30
    cpus: float = 1.0
    processes: int = 256
    file_size: int = 1 << 30
    tmp_size: int = 1 << 30


class ProcessHandle(Protocol):
    """A worker as the system that runs it sees it."""

    def poll(self) -> str | None:
        """None while it runs, otherwise how it ended, to follow "the worker"."""

    def kill(self) -> None:
        """End it and all that it started, and wait until it is gone; quiet if it has ended."""


def local_source(requirement: str) -> Path | None:
    """The file or folder of this machine that a requirement names by its full path, if it is one."""
    path = Path(unquote(requirement.partition(" @ ")[2].removeprefix("file://")) or requirement)
    return path if path.is_absolute() and path.exists() else None


class IsolatedProvider(ABC):
    """An installation of one library, apart from this process."""

    name: ClassVar[str]

    def __init__(self, manifest: Manifest) -> None:
        """Know the library; nothing is built or started."""
        self.manifest = manifest

    @abstractmethod
    def is_built(self) -> bool:
        """Whether the installation is there, as the manifest says."""

    @abstractmethod
    def was_built(self) -> bool:
        """Whether an installation of the library is there, made from this definition of it or from another."""

    @abstractmethod
    def build(self) -> None:
        """Make the installation if it is not there.

        Raises:
            EnvironmentFailure: it cannot be made; the message holds the end of the installer's output.
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove the installation, if it is there."""

    @abstractmethod
    def source_of(self, address: str) -> str | None:
        """The path on this machine of what was installed from an address ``file://...``, if a requirement names it."""

    @abstractmethod
    def launch(self, folder: Path, limits: Limits) -> ProcessHandle:
        """Start a worker in the installation.

        Args:
            folder: holds ``main.py`` with the files that it imports, and the listening ``socket``; it is removed as
                soon as the worker has connected.
            limits: what it may use.
        """

    @abstractmethod
    def provenance(self) -> dict[str, str]:
        """What was run, for the record: provider, Python, image digest or hash of the lock."""

    def _occasion(self) -> str:
        """Why ``build`` makes an installation that is not there, for the line that says that it does."""
        return "again: what is here was made from another definition" if self.was_built() else "once"
