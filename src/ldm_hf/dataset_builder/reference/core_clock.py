"""Time that counts against a budget: of cores, not of a clock on the wall, which other work on the machine slows down."""

import contextlib
import time

import psutil


class CoreClock:
    """Seconds since it was made.

    Args:
        by_wall: whether the wall's clock counts: where some of the work is done by processes that this one did not start,
            in containers, or by an accelerator.
    """

    def __init__(self, by_wall: bool = False) -> None:
        self._by_wall = by_wall
        self._start = self._now()

    def seconds(self) -> float:
        """Of this process and of those that it started, user and system time."""
        return self._now() - self._start

    def _now(self) -> float:
        if self._by_wall:
            return time.monotonic()
        own = psutil.Process()
        total = sum(own.cpu_times()[:4])  # with those children that have ended
        for child in own.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += sum(child.cpu_times()[:4])
        return total
