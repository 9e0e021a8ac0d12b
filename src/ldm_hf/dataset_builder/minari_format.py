"""What both directions of the conversion between Minari's datasets and ours share."""

from collections.abc import Callable
from typing import Any

from ldm_hf.errors import ConfigError

REFERENCE = "reference_action"
"""Key of the infos of an episode under which labels travel."""

Progress = Callable[[int, int], None]
"""Called with the episodes that are converted, and how many there are."""


def import_minari() -> Any:
    """The package; ``ConfigError`` if it is not installed."""
    try:
        import minari
    except ImportError as error:
        raise ConfigError("Minari datasets need Minari: pip install 'ldm_hf[minari]'") from error
    return minari
