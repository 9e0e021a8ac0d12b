"""Running jobs to their end: one loop, with one rule for processes that die."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from ldm_hf.executors.base import Executor, JobResult

_POLL_SECONDS = 0.3

More = Callable[[Collection[str]], list[Any]]
"""The jobs that could run now, given the names of those that run: neither done nor running, the most urgent first."""


def run_jobs(
    executor: Executor,
    jobs: Sequence[Any] | More,
    ended: Callable[[JobResult, bool], None],
    watch: Callable[[list[Any], list[Any]], None] = lambda running, waiting: None,
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Run jobs until none is left. A job whose process dies before it is done is started once more.

    Args:
        executor: where they run; the caller closes it.
        jobs: all of them, or a function that is asked when none waits and after each job that ``decides`` what follows.
        ended: told of each job that ended, and whether it is started once more.
        watch: called about three times per second with the jobs that run and those that wait.
        stopping: whether no further job is to be started.

    Returns:
        Whether all were run; not if ``stopping`` came before.

    Raises:
        LDMError: a job met what no other job can get past, such as a full disk.
    """
    more: More = jobs if callable(jobs) else lambda running: []
    waiting = more(()) if callable(jobs) else list(jobs)
    running: dict[str, Any] = {}
    crashed: set[str] = set()
    while running or (waiting and not stopping()):
        for job in [] if stopping() else list(waiting):
            if executor.has_room(job):
                executor.submit(job)
                running[job.name] = job
                waiting.remove(job)
        for result in executor.wait(_POLL_SECONDS):
            job = running.pop(result.job.name)
            died = result.crash is not None and not job.is_done
            again = died and job.name not in crashed
            if again:
                crashed.add(job.name)
                waiting.append(job)
            ended(JobResult(job, result.crash), again)
            if not again and getattr(job, "decides", False):
                waiting = more(running)
        waiting = waiting or more(running)
        watch(list(running.values()), waiting)
    return not waiting
