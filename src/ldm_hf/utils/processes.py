"""Processes and their ends: SIGTERM, and children that never outlive the command that started them, even if it is killed."""

import contextlib
import hashlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from ldm_hf.errors import LDMError

_OWNER = "LDM_OWNER_PID"


class ChildFailure(LDMError):
    """A child process failed; it has printed why."""


class Termination:
    """SIGTERM, which schedulers send some time before they kill, as a question.

    Attributes:
        asked: whether this process was asked to end.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Note the signal instead of dying of it. Only a process's main thread can hear it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def exit_with_owner(owner: int | None = None) -> None:
    """End this process at once when its owner is gone: the given one, or that of ``run_child``; without one, do nothing."""
    pid = owner if owner is not None else int(os.environ.get(_OWNER, "0"))
    if pid:
        threading.Thread(target=_wait_and_exit, args=(pid,), daemon=True).start()


def is_first_to_say(line: str) -> bool:
    """Whether no other process of a launch on this machine has said a line; without a launcher that counts, always.

    Processes that train together fail together, and one line is enough. One that fails alone says why itself.
    """
    own = os.environ.get("TORCHELASTIC_ERROR_FILE")  # <folder of the launch>/<rank>/error.json
    if own is None:
        return True
    said = Path(own).parent.parent / f"said-{hashlib.sha256(line.encode()).hexdigest()[:16]}"
    try:
        said.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def run_child(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command to its end, in a process group of its own that is killed if this process is interrupted.

    Processes anywhere below it that call ``exit_with_owner`` also end when this process is killed.

    Raises:
        ChildFailure: it exited with an error.
    """
    variables = {**os.environ, **(environment or {}), _OWNER: str(os.getpid())}
    with subprocess.Popen(command, env=variables, start_new_session=True) as child:
        try:
            code = child.wait()
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    if code:
        raise ChildFailure(f"`{' '.join(command[:6])} ...` ended with exit status {code}; its output above says why")


def _wait_and_exit(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait()
    os._exit(1)
