"""The model: self-contained, imports nothing else of the package, and is published with a checkpoint as remote code.

Names are imported on first use: ``spaces_ldm`` serves the parts of the package that do without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .auto_ldm import LDMConfig, LDMModel, LDMPolicy, LDMProcessor

__all__ = ["LDMConfig", "LDMModel", "LDMPolicy", "LDMProcessor"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.auto_ldm"), name)
