"""What both directions of the conversion between Minari's datasets and ours share."""

from typing import Any

from ldm_hf.utils.dependencies import require

REFERENCE = "reference_action"
"""Key of the infos of an episode under which labels travel."""


def import_minari() -> Any:
    """The package; ``MissingDependencyError`` if it is not installed."""
    require("the conversion of Minari's datasets", "minari")
    import minari

    return minari
