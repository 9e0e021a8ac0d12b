"""Which workers have taken their step: so that the fast ones need not wait for the slow ones."""

import math
import select
import time
from collections.abc import Sequence

from ldm_hf.env_registry.remote.worker_batch import WorkerBatch


def wait_for_workers(
    workers: Sequence[WorkerBatch | None], least: int = 1, *, spin: float = 0.0, timeout: float = math.inf
) -> list[int]:
    """Wait until some of the workers that were sent a step have taken it, or can no longer do so.

    Args:
        workers: that were sent a step. None is one that has failed: it counts, as does one that is out of time, because
            receiving its step says why at once.
        least: how many to wait for; 0 asks once.
        spin: seconds to keep asking before sleeping.
        timeout: seconds after which no more are waited for.

    Returns:
        Which they are, in order: at least ``least``, or all, unless the time is over.
    """
    ended = [index for index, worker in enumerate(workers) if worker is None or worker.ended]
    waiting = {worker.fileno(): (index, worker) for index, worker in enumerate(workers) if worker and not worker.ended}
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    ready, start = list(ended), time.monotonic()
    while waiting:
        now = time.monotonic()
        late = [descriptor for descriptor, (_, worker) in waiting.items() if worker.deadline <= now]
        only_ask = late or now - start < spin or len(ready) >= least
        until = min(start + timeout, *(worker.deadline for _, worker in waiting.values()))
        answered = [descriptor for descriptor, _ in poll.poll(0 if only_ask else max(0.0, until - now) * 1000 + 1)]
        for descriptor in {*late, *answered}:
            poll.unregister(descriptor)
            ready.append(waiting.pop(descriptor)[0])
        if len(ready) >= least or time.monotonic() - start >= timeout:
            break
    return sorted(ready)
