"""What an executor is: it runs jobs, here (``local.py``) or on a Ray cluster (``ray.py``)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


class Work(Protocol):
    """What an executor runs: it can be pickled, and its result is on disk."""

    @property
    def name(self) -> str:
        """For messages, and unlike that of any other."""

    @property
    def memory(self) -> int:
        """Estimate, in bytes."""

    @property
    def wants_gpu(self) -> bool:
        """Whether it gains from one."""

    def on(self, device: str) -> "Work":
        """The same work on a torch device."""

    def execute(self, progress: Callable[[str, int, int], None]) -> None:
        """Do it, in the process that the executor chose; say what is being done, how much is, and how much there is."""


@dataclass(frozen=True)
class JobResult:
    """A job that has ended.

    Attributes:
        job: what was submitted.
        crash: how its process died, if it did; the job has no result then.
    """

    job: Any
    crash: str | None = None


@dataclass(frozen=True)
class Message:
    """How far a job is."""

    name: str
    stage: str
    done: int
    total: int


class Executor(Protocol):
    """Runs jobs. A job's result is on disk; what comes back says only that it has ended."""

    def has_room(self, job: Work) -> bool:
        """Whether the job would start at once."""

    def submit(self, job: Work) -> None:
        """Start a job."""

    def wait(self, seconds: float) -> list[JobResult]:
        """The jobs that have ended, waiting for at most so long for one.

        Raises:
            LDMError: a job met what no other job can get past, such as a full disk.
        """

    def messages(self) -> list[Message]:
        """What jobs have said since the last call; an executor may have nothing to tell."""

    def close(self) -> None:
        """End what runs, at once, and leave nothing behind."""
