"""Child processes that never outlive the command that started them, even when that is killed."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence

import psutil

from ldm_hf.errors import LDMError

_OWNER = "LDM_OWNER_PID"


class ChildFailure(LDMError):
    """A child process failed; it has printed why."""


def exit_with_owner(owner: int | None = None) -> None:
    """End this process at once when its owner is gone: the given one, or that of ``run_child``; without one, do nothing."""
    pid = owner if owner is not None else int(os.environ.get(_OWNER, "0"))
    if pid:
        threading.Thread(target=_wait_and_exit, args=(pid,), daemon=True).start()


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
