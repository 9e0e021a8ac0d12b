"""Requests for actions become batches: the model acts for all that have come while it was busy, or within a short wait."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldm_hf.errors import ServingError, one_line
from ldm_hf.serving.metrics import Metrics

if TYPE_CHECKING:
    from ldm_hf.serving.engine import Step

READS_AT_ONCE = 4096
"""Transitions that full contexts make the model read again in one batch, about; further rollouts wait for the next batch,
so that sessions which began together do not hold up all others at once."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Waiting:
    """A request in the queue: since when, and who is told of its end."""

    step: "Step"
    since: float
    done: "asyncio.Future[None]"


class Batcher:
    """The queue before a model.

    Args:
        act: acts for some requests, elsewhere than in the event loop.
        max_batch_size: environments of a batch; a request of more is a batch of its own.
        max_delay: seconds that a request waits for others while the model is idle.
        num_envs: how many environments could ask: when all of these have, nobody is waited for.
        metrics: is told of each batch.
    """

    def __init__(
        self,
        act: Callable[[Sequence["Step"]], Awaitable[None]],
        max_batch_size: int,
        max_delay: float,
        num_envs: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        self._act, self._num_envs, self._metrics = act, num_envs, metrics
        self._max_batch_size, self._max_delay = max_batch_size, max_delay
        self._queue: list[_Waiting] = []
        self._arrival = asyncio.Event()

    def __len__(self) -> int:
        """How many requests are in the queue."""
        return len(self._queue)

    async def put(self, step: "Step") -> None:
        """Wait until the model has acted, or not: see ``Step``."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(step, loop.time(), loop.create_future())
        self._queue.append(waiting)
        self._arrival.set()
        await waiting.done
        self._metrics.took(loop.time() - waiting.since)

    async def run(self) -> None:
        """Make batches until this is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._fill(loop)
            # Nothing here holds a batch when it is done: the memory of its sessions may be wanted.
            await self._answer(self._next_batch(), loop)

    async def _answer(self, batch: list[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        started = loop.time()
        try:
            await self._act([waiting.step for waiting in batch])
        except Exception as error:  # a defect must not leave clients without an answer
            _log.exception("a batch failed")
            for waiting in batch:
                waiting.step.error = ServingError(f"the server failed: {one_line(error, 200)}")
                waiting.step.is_lost = True
        num_envs = sum(len(waiting.step.policy) for waiting in batch)
        self._metrics.acted(num_envs, [started - waiting.since for waiting in batch])
        for waiting in batch:
            if not waiting.done.done():  # who has gone is told nothing
                waiting.done.set_result(None)

    async def _fill(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for a request, then for others: until the batch is full, all have asked, or the first has waited enough."""
        while True:
            self._arrival.clear()
            asked = sum(len(waiting.step.policy) for waiting in self._queue)
            if asked >= min(self._max_batch_size, self._num_envs()) and self._queue:
                return
            left = self._queue[0].since + self._max_delay - loop.time() if self._queue else None
            if left is not None and left <= 0:
                return
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except asyncio.TimeoutError:
                return

    def _next_batch(self) -> list[_Waiting]:
        """Take requests from the queue, in their order; those that do not fit stay."""
        batch: list[_Waiting] = []
        left: list[_Waiting] = []
        num_envs = num_reads = 0
        for waiting in self._queue:
            envs, reads = len(waiting.step.policy), waiting.step.num_reads
            fits = num_envs + envs <= self._max_batch_size and (not reads or num_reads + reads <= READS_AT_ONCE)
            if fits or not batch:
                batch.append(waiting)
                num_envs, num_reads = num_envs + envs, num_reads + reads
            else:
                left.append(waiting)
        self._queue = left
        return batch
