"""Progress bars: one look everywhere, redrawn on a terminal and printed now and then into a log."""

import sys
from typing import Any

from tqdm.auto import tqdm

_SECONDS_ON_TERMINAL, _SECONDS_IN_LOG = 0.3, 10.0


def progress_bar(description: str, total: int, unit: str, **options: Any) -> tqdm:
    """A bar that says what is done, how fast, and how long is left."""
    on_terminal = sys.stderr.isatty()
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        dynamic_ncols=on_terminal,
        ncols=None if on_terminal else 110,
        mininterval=_SECONDS_ON_TERMINAL if on_terminal else _SECONDS_IN_LOG,
        miniters=1,  # time alone decides when a bar is redrawn: steps come at very different speeds
        **options,
    )
