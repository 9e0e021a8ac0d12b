"""What every benchmark shares: taking turns, medians of ratios, a table, and ``--json``."""

import contextlib
import ctypes
import statistics
from collections.abc import Callable, Mapping

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def take_turns(
    contenders: Mapping[str, Callable[[float], float]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Measure contenders in turn, A B C A B C ...: on a shared machine speed drifts, and ratios within a round do not.

    Args:
        contenders: name -> function of the seconds to run, which returns a rate.
        rounds: how often each is measured; one more round, the first, is not counted.
        seconds: of one measurement.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, measure in contenders.items():
            rate = measure(seconds if number else seconds / 4)
            if number:
                rates[name].append(rate)
    return rates


def keep_memory() -> None:
    """Let the C library keep what is freed, as accelerators' allocators do.

    Else large tensors are given back, and the pages of new ones cleared, in every step: of layouts with large intermediate
    values that is up to half of the time, and what would be compared.
    """
    with contextlib.suppress(AttributeError, OSError):  # other C libraries than glibc have none
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)


def ratio(rates: Mapping[str, list[float]], name: str, other: str) -> tuple[float, float, float]:
    """Smallest, median and largest of the ratios of two contenders within a round."""
    ratios = [one / two for one, two in zip(rates[name], rates[other], strict=True)]
    return min(ratios), statistics.median(ratios), max(ratios)
