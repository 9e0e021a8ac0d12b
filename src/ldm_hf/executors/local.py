"""The executor of this machine: processes of one thread each."""

import contextlib
import multiprocessing
import os
import signal
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from queue import Empty
from typing import Any

import pebble
import psutil

from ldm_hf.errors import ConfigError
from ldm_hf.executors.base import JobResult, Message, Work
from ldm_hf.utils.processes import ChildFailure, exit_with_owner

_REPORT_SECONDS = 0.3  # between two messages of a job
_MOST_RENEWALS = 20  # of all processes, one after another, before something else must be wrong than that one was killed
_MEMORY_SHARE = 0.9  # of the memory at hand, that jobs may take together
_CGROUP = Path("/sys/fs/cgroup")


class LocalExecutor:
    """Processes of this machine, one thread each. They end when this process does, even if it is killed.

    Args:
        jobs: how many at a time, by default one per processor; fewer where memory would not do for all.

    Raises:
        ConfigError: ``jobs`` is below 1.
    """

    def __init__(self, jobs: int | None = None):
        if jobs is not None and jobs < 1:
            raise ConfigError(f"jobs must be at least 1, got {jobs}")
        self._slots = jobs or len(os.sched_getaffinity(0))
        self._memory = int(available_memory() * _MEMORY_SHARE)
        self._running: dict[Future, Work] = {}
        self._renewals = 0  # since a job has ended
        self._context = multiprocessing.get_context("spawn")
        self._messages = self._context.Queue()
        os.environ["OMP_NUM_THREADS"] = "1"  # Read by the workers when they start: one run, one core.
        self._pool = self._new_pool()

    def has_room(self, job: Work) -> bool:
        """Whether a process is free and memory is left; one job is always let in."""
        if not self._running:
            return True
        taken = sum(running.memory for running in self._running.values())
        return len(self._running) < self._slots and taken + job.memory <= self._memory

    def submit(self, job: Work) -> None:
        """Start a job."""
        self._mend_pool()
        self._schedule(job)

    def wait(self, seconds: float) -> list[JobResult]:
        """The jobs that have ended."""
        self._mend_pool()
        finished, _ = wait(self._running, timeout=seconds, return_when=FIRST_COMPLETED)
        ended, lost = [], []
        for future in finished:
            job = self._running.pop(future)
            try:
                future.result()
                ended.append(JobResult(job))
            except pebble.ProcessExpired as error:
                ended.append(
                    JobResult(job, f"its process died (exit code {error.exitcode}), perhaps for want of memory")
                )
            except BrokenProcessPool:
                lost.append(job)
        if ended:
            self._renewals = 0
        if lost:
            self._renew_pool(lost)
        return ended

    def messages(self) -> list[Message]:
        """What jobs have said."""
        found = []
        with contextlib.suppress(Empty):
            while True:
                found.append(self._messages.get_nowait())
        return found

    def _mend_pool(self) -> None:
        """Take new processes where one that had no job yet was killed, which breaks all of them."""
        if not self._pool.active:
            self._renew_pool([])

    def _renew_pool(self, lost: list[Work]) -> None:
        """Start all jobs again in new processes: that the others broke says nothing of them.

        Raises:
            ChildFailure: the processes break again and again, and no job ends.
        """
        self._renewals += 1
        if self._renewals > _MOST_RENEWALS:
            raise ChildFailure(f"the processes that run jobs ended {self._renewals} times in a row, without any job")
        self._pool.stop()
        self._pool.join()
        jobs, self._running = [*lost, *self._running.values()], {}
        self._pool = self._new_pool()
        for job in jobs:
            self._schedule(job)

    def _schedule(self, job: Work) -> None:
        self._running[self._pool.schedule(_work, args=(job,))] = job

    def _new_pool(self) -> pebble.ProcessPool:
        # Ctrl-C reaches all processes of a terminal. Only this one shall answer: the pool's threads, and through them its
        # processes, inherit what is blocked while they are started.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pool = pebble.ProcessPool(
                self._slots, context=self._context, initializer=_start_worker, initargs=(self._messages, os.getpid())
            )
            assert pool.active  # asking starts it
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pool

    def close(self) -> None:
        """Kill what runs."""
        self._pool.stop()
        self._pool.join()
        self._messages.cancel_join_thread()
        self._messages.close()


def available_memory() -> int:
    """Bytes that processes may still take: of the machine, or of the control group where that leaves less."""
    available = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        entries = (_CGROUP / "memory.stat").read_text(encoding="ascii").split()
        cache = int(entries[entries.index("inactive_file") + 1])  # the system takes it back when it is needed
        available = min(available, limit - used + cache)
    return available


_queue: Any = None


def _start_worker(messages: Any, owner: int) -> None:
    global _queue  # noqa: PLW0603  (how a pool's initializer hands something to its tasks)
    _queue = messages
    exit_with_owner(owner)


def _work(job: Work) -> None:
    last = 0.0

    def report(stage: str, done: int, total: int) -> None:
        nonlocal last
        if done >= total or time.monotonic() - last > _REPORT_SECONDS:
            last = time.monotonic()
            _queue.put(Message(job.name, stage, done, total))

    job.execute(report)
