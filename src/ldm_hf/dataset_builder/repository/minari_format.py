"""What both directions of the conversion between Minari's datasets and ours share."""

from collections.abc import Callable
from typing import Any

from ldm_hf.utils.dependencies import require

REFERENCE = "reference_action"
"""Key of the infos of an episode under which labels travel."""

Progress = Callable[[int, int], None]
"""Called with the episodes that are converted, and how many there are."""


def import_minari() -> Any:
    """The package; ``MissingDependencyError`` if it is not installed."""
    require("the conversion of Minari's datasets", "minari")
    import minari

    return minari
