"""What a server counts and measures: batches, answers, how long they took."""

import time
from collections import Counter, deque
from typing import Any

import numpy as np

_REMEMBERED = 10_000
_PERCENTILES = (50, 90, 99)


class Metrics:
    """Counters since the start, and percentiles of the last 10,000 batches and answers."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._answers: Counter[str] = Counter()
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._waits: deque[float] = deque(maxlen=_REMEMBERED)
        self._batches: deque[int] = deque(maxlen=_REMEMBERED)
        self._num_batches = self._num_actions = self._largest = 0

    def answered(self, status: int) -> None:
        """Count an HTTP answer."""
        self._answers[str(status)] += 1

    def acted(self, num_envs: int, waits: list[float]) -> None:
        """Count a batch: its environments, and for how many seconds each of its requests has waited."""
        self._num_batches += 1
        self._num_actions += num_envs
        self._largest = max(self._largest, num_envs)
        self._batches.append(num_envs)
        self._waits.extend(waits)

    def took(self, seconds: float) -> None:
        """Note how long a request for actions took, from its arrival to its answer."""
        self._seconds.append(seconds)

    def summary(self) -> dict[str, Any]:
        """All of it, as JSON data; times are in milliseconds."""
        mean = self._num_actions / self._num_batches if self._num_batches else 0.0
        return {
            "uptime_seconds": time.monotonic() - self._started,
            "answers": dict(sorted(self._answers.items())),
            "actions": self._num_actions,
            "batches": self._num_batches,
            "batch_size": {"mean": mean, "largest": self._largest, **_percentiles(self._batches, 1)},
            "latency_ms": _percentiles(self._seconds, 1000),
            "wait_ms": _percentiles(self._waits, 1000),
        }


def _percentiles(values: "deque[float] | deque[int]", factor: float) -> dict[str, float]:
    found = np.percentile(values, _PERCENTILES) * factor if values else np.zeros(len(_PERCENTILES))
    return {f"p{percent}": float(value) for percent, value in zip(_PERCENTILES, found, strict=True)}
