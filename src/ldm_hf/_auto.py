"""Makes transformers know the model after a bare ``import ldm_hf``, without importing transformers or torch for it.

The command line and the processes that only step environments never pay for either: the registration waits until
transformers' Auto classes are imported, and the model's own code until a checkpoint of its type is met.
"""

import importlib
from typing import Any

import wrapt


class _ConfigOnFirstUse:
    """Stands in for ``LDMConfig``, which cannot be imported while transformers is still importing itself."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        return _register().LDMConfig.from_dict(config_dict, **kwargs)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _register().LDMConfig(*args, **kwargs)


def _register(_module: Any = None) -> Any:
    return importlib.import_module("ldm_hf.modeling.auto_ldm")


def _announce(module: Any) -> None:
    module.AutoConfig.register("ldm", _ConfigOnFirstUse, exist_ok=True)


def register_lazily() -> None:
    """Register with the Auto classes as soon as they are imported, or at once if they are."""
    wrapt.register_post_import_hook(_announce, "transformers.models.auto.configuration_auto")
    wrapt.register_post_import_hook(_register, "transformers.models.auto.processing_auto")
