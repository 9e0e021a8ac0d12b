"""One worker: starting it, asking it, noticing how it ended, and ending it."""

import contextlib
import fcntl
import importlib.resources
import mmap
import os
import shutil
import socket
import stat
import tempfile
import time
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import psutil

from ldm_hf.env_registry.providers.base import IsolatedProvider, Limits, ProcessHandle
from ldm_hf.env_registry.worker import protocol
from ldm_hf.errors import EnvironmentFailure

START_TIMEOUT = 300.0
"""Seconds that starting a worker, importing its library and making its environments may take, each."""

_WORKER_FILES = (
    "main.py",
    "env_batch.py",
    "attributes.py",
    "decoding.py",
    "experts.py",
    "fitting.py",
    "installed.py",
    "compatibility.py",
    "protocol.py",
    "space_tree.py",
)
_LIFELINE_TIMEOUT = 2.0  # seconds within which the supervisor tells how its child ended
_GRACE = 1.0  # seconds that are always left: this process itself may have been stopped since it sent the request
_FOLDER_PREFIX = "ldm-worker-"


class WorkerEnd(EnvironmentFailure):
    """A worker is gone, or was ended because of what it did; the message says why."""


@dataclass
class _Resources:
    """What must be let go of when a worker's owner forgets it."""

    process: ProcessHandle
    lifeline: socket.socket
    channel: protocol.Channel

    def release(self) -> None:
        self.channel.close()
        self.lifeline.close()
        self.process.kill()


class WorkerProcess:
    """A worker process of a library's isolated installation.

    Attributes:
        provider: where it runs.
        subject: what it runs, for messages: an environment's id or a library's slug.
        number: of the request that was sent last; they count from 1.
        deadline: when it has to be answered, of ``time.monotonic``.
        ended: whether the process was ended from here, or its end was noticed.
    """

    def __init__(self, provider: IsolatedProvider, subject: str, limits: Limits, start_timeout: float) -> None:
        """Start the process and import the library in it.

        Raises:
            WorkerEnd: it did not start, or the import failed.
        """
        self.provider, self.subject = provider, subject
        self.number = self._answered = 0
        self.deadline = 0.0
        self.ended = False
        self._resources = _start(provider, subject, limits, start_timeout)
        # Closing the lifeline ends the worker; this does so even when nobody calls `close`.
        self._release = weakref.finalize(self, self._resources.release)
        manifest = provider.manifest
        self.ask(start_timeout, do="load", modules=list(manifest.modules), register=list(manifest.register))

    def ask(self, timeout: float, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            WorkerEnd: the worker ended, gave no answer in time, or answered something else. It is ended then.
            EnvironmentFailure: the environment raised an exception; the worker continues.
        """
        self.send(timeout, **request)
        return self.receive(timeout, request["do"])

    def send(self, timeout: float, **request: Any) -> None:
        """Send a request; its answer is had from ``receive``."""
        self.number += 1
        self.deadline = time.monotonic() + timeout
        request["number"] = self.number
        try:
            self._resources.channel.send(request, timeout)
        except protocol.ChannelClosed:
            raise self._end(request["do"]) from None
        except protocol.ChannelTimeout:
            raise self._give_up(f"took no request within {timeout:g} s") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise EnvironmentFailure(f"{self.subject}: {request['do']} takes plain data only: {error}") from error

    def receive(self, timeout: float, doing: str, *, spin: float = 0.0) -> dict[str, Any]:
        """Wait for the answer to the request that was sent last, until ``timeout`` seconds after it was sent.

        Answers to earlier ones, for which their senders did not wait because an exception came between, are dropped.
        """
        while True:
            answer = self._next_answer(timeout, doing, spin)
            number = answer.get("number")
            if type(number) is not int or not self._answered < number <= self.number:
                raise self._give_up(f"{doing} was answered by garbage (answer number {str(number)[:20]!r})")
            self._answered = number
            if number == self.number:
                break
        if "error" in answer:
            # One line without control characters, however the worker wrote it.
            reason = "".join(letter if letter.isprintable() else " " for letter in str(answer["error"])[:2000])
            raise EnvironmentFailure(f"{self.subject}: {doing} failed: {' '.join(reason.split())}")
        return answer

    def _next_answer(self, timeout: float, doing: str, spin: float) -> dict[str, Any]:
        try:
            left = max(self.deadline - time.monotonic(), min(timeout, _GRACE))
            return self._resources.channel.receive(left, spin)
        except protocol.ChannelClosed:
            raise self._end(doing) from None
        except protocol.ChannelTimeout:
            raise self._give_up(f"{doing} gave no answer within {timeout:g} s") from None
        except protocol.ProtocolError as error:
            raise self._give_up(f"{doing} was answered by garbage ({error})") from None

    def fileno(self) -> int:
        """Of the socket through which answers come."""
        return self._resources.channel.socket.fileno()

    def share(self, batch: protocol.SharedBatch) -> None:
        """Map memory for a batch, here and in the worker.

        It has no name in any file system, so nothing is left of it when both sides are gone; and it is sealed, so that
        the worker cannot take pages away that are read here.
        """
        batch.nbytes = max(batch.nbytes, mmap.PAGESIZE)
        with _anonymous_file(batch.nbytes) as descriptor:
            batch.attach(descriptor)
            try:
                protocol.send_descriptor(self._resources.channel, descriptor)
            except OSError:
                raise self._end("make") from None

    def fail(self, reason: str) -> WorkerEnd:
        """End the worker because of what it answered; returns the error to raise."""
        return self._give_up(reason)

    def close(self) -> None:
        """Let the environments close themselves for a moment, then end the worker and all that it started."""
        if self._release.alive:
            try:
                with contextlib.suppress(EnvironmentFailure):
                    self.ask(_LIFELINE_TIMEOUT, do="close")
            finally:
                self.ended = True
                self._release()

    def _give_up(self, reason: str) -> WorkerEnd:
        self.ended = True
        self._release()
        return WorkerEnd(f"{self.subject}: {reason}; its worker was ended")

    def _end(self, doing: str) -> WorkerEnd:
        """The error for a worker that ended by itself."""
        self.ended = True
        how = _last_words(self._resources.lifeline) or self._resources.process.poll() or "closed its connection"
        self._release()
        return WorkerEnd(f"{self.subject}: the worker {how} during {doing}")


def discover(provider: IsolatedProvider, *, start_timeout: float = START_TIMEOUT) -> dict[str, Any]:
    """Import a library and list every id that is then registered.

    Returns:
        ``environments``: maps of id, registry ("gymnasium" or "gym"), entry_point, max_episode_steps, reward_threshold and
        nondeterministic; ``registers``: functions of the library, ``module:name``, that may register more; ``python``: its
        version.

    Raises:
        EnvironmentFailure: the library cannot be imported.
    """
    return _ask_once(provider, "discover", start_timeout)


def installed(provider: IsolatedProvider, *, start_timeout: float = START_TIMEOUT) -> tuple[list[str], list[Any]]:
    """What is installed beside a library: lines of ``pip freeze``, and what packages say, see ``worker/installed.py``.

    Raises:
        EnvironmentFailure: that cannot be asked.
    """
    library = provider.manifest
    asked = type(provider)(replace(library, modules=(), register=()))  # nothing of the library runs for this
    answer = _ask_once(asked, "installed", start_timeout)
    frozen, distributions = answer.get("frozen"), answer.get("distributions")
    if not isinstance(distributions, list) or not isinstance(frozen, list):
        raise EnvironmentFailure(f"{library.slug}: its packages cannot be listed")
    return [str(line) for line in frozen], distributions


def _ask_once(provider: IsolatedProvider, do: str, timeout: float) -> dict[str, Any]:
    worker = WorkerProcess(provider, provider.manifest.slug, Limits(), timeout)
    try:
        return worker.ask(timeout, do=do)
    finally:
        worker.close()


def _start(provider: IsolatedProvider, subject: str, limits: Limits, timeout: float) -> _Resources:
    """Start a worker process and accept its two connections: the supervisor's lifeline and the channel."""
    _remove_orphaned_folders()
    outer = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-"))
    folder = outer / "run"  # The outer folder keeps other users out, the inner one lets another user id inside read.
    try:
        folder.mkdir(mode=0o755)
        source = importlib.resources.files(protocol.__package__)
        for name in _WORKER_FILES:
            (folder / name).write_bytes(source.joinpath(name).read_bytes())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(folder / "socket"))
            (folder / "socket").chmod(0o666)
            listener.listen(2)
            process = provider.launch(folder, limits)
            try:
                connections = [_accept(listener, process, subject, timeout) for _ in range(2)]
            except BaseException:
                process.kill()
                raise
        return _Resources(process, connections[0], protocol.Channel(connections[1]))
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _accept(listener: socket.socket, process: ProcessHandle, subject: str, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    listener.settimeout(0.1)
    while True:
        try:
            return listener.accept()[0]
        except TimeoutError:
            ended = process.poll()
            if ended is not None:
                raise WorkerEnd(f"{subject}: the worker {ended} before it connected") from None
            if time.monotonic() > deadline:
                raise WorkerEnd(f"{subject}: the worker did not connect within {timeout:g} s") from None


def _last_words(lifeline: socket.socket) -> str | None:
    """How the worker's child ended, as its supervisor tells it."""
    data = b""
    try:
        lifeline.settimeout(_LIFELINE_TIMEOUT)
        while chunk := lifeline.recv(65536):
            data += chunk
        words = msgpack.unpackb(data)
        status, output = int(words["status"]), str(words["output"]).strip()
    except (OSError, ValueError, KeyError, TypeError, msgpack.UnpackException):
        return None
    if os.WIFSIGNALED(status):
        how = f"was killed by signal {os.WTERMSIG(status)}"
        if os.WTERMSIG(status) == 9:
            how += " (out of memory?)"
    else:
        how = f"exited with status {os.waitstatus_to_exitcode(status)}"
    return f"{how}, its last output {' '.join(output.split())[-500:]!r}," if output else how


@contextlib.contextmanager
def _anonymous_file(nbytes: int) -> Any:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("ldm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:  # macOS
        descriptor, name = tempfile.mkstemp()
        Path(name).unlink()
    try:
        os.ftruncate(descriptor, nbytes)
        if hasattr(fcntl, "F_ADD_SEALS"):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_orphaned_folders() -> None:
    """Remove what processes left that were killed while a worker of theirs was starting."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        owner = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            ours = stat.S_ISDIR(folder.lstat().st_mode) and folder.lstat().st_uid == os.getuid()
            if ours and owner.isdigit() and not psutil.pid_exists(int(owner)):
                shutil.rmtree(folder, ignore_errors=True)
