"""``ldm launch``: Accelerate's launcher, whose end is that of its processes.

`accelerate launch` ends a failure of its processes in a traceback of its own, after the line in which they said why. What
it starts cannot prevent that. This is the same launcher, called as a library, and what it raises is an exit status.
"""

import logging
import os
import signal
from collections.abc import Sequence
from subprocess import CalledProcessError
from types import FrameType

import psutil
import typer


def launch(arguments: Sequence[str]) -> int:
    """Run ``accelerate launch`` with these arguments; gives the exit status of the process that failed first, or 0.

    SIGTERM is passed on to the processes; Accelerate does that itself only where there are several.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Elastic: a node that comes back would wait for an address that the others, who know it, do not give again.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    chosen = launch_command_parser().parse_args(list(arguments))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # What it says, we do.
    signal.signal(signal.SIGTERM, _pass_on)
    try:
        launch_command(chosen)
    except CalledProcessError as error:
        return _status(error.returncode, "the training process")
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _status(failure.exitcode, f"the process of rank {rank}")
    except SignalException as error:
        return 128 + int(error.sigval)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (ValueError, NotImplementedError, OSError) as error:  # options that contradict each other
        typer.echo(f"error: accelerate cannot launch this: {' '.join(str(error).split())}", err=True)
        return 1
    return 0


def _status(code: int, who: str) -> int:
    """As a shell would say it. A process that a signal ended could not say so itself."""
    if code >= 0:
        return code
    typer.echo(f"error: {who} was ended by {signal.Signals(-code).name}", err=True)
    return 128 - code


def _pass_on(number: int, frame: FrameType | None) -> None:
    for child in psutil.Process().children():
        child.send_signal(number)
