"""Large Decision Models, Hugging Face-native: one transformer policy for thousands of Gymnasium environments.

After ``import ldm_hf``, ``AutoModel`` and ``AutoProcessor`` of transformers know the model. Public names are imported on
first use, so that the command line starts without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ldm_hf._auto import register_lazily

if TYPE_CHECKING:
    from ldm_hf.env_registry.registry import list_environments, make, make_vec, spec
    from ldm_hf.modeling import LDMConfig, LDMModel, LDMPolicy, LDMProcessor

__version__ = "0.1.0.dev0"

_MODULES = {
    "LDMConfig": "ldm_hf.modeling",
    "LDMModel": "ldm_hf.modeling",
    "LDMPolicy": "ldm_hf.modeling",
    "LDMProcessor": "ldm_hf.modeling",
    "list_environments": "ldm_hf.env_registry.registry",
    "make": "ldm_hf.env_registry.registry",
    "make_vec": "ldm_hf.env_registry.registry",
    "spec": "ldm_hf.env_registry.registry",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register_lazily()
