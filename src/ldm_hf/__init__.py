"""Large Decision Models, Hugging Face-native: one transformer policy for thousands of Gymnasium environments.

After ``import ldm_hf``, ``AutoModel`` and ``AutoProcessor`` of transformers know the model. Public names are imported on
first use, so that the command line starts without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ldm_hf._auto import register_lazily

if TYPE_CHECKING:
    from ldm_hf.dataset_builder.build.build import build
    from ldm_hf.dataset_builder.format.reader import open_datasets
    from ldm_hf.dataset_builder.repository.publish import publish
    from ldm_hf.env_registry.registry import list_environments, make, make_vec, spec
    from ldm_hf.evaluation.agent import Agent, load
    from ldm_hf.evaluation.evaluate import evaluate
    from ldm_hf.finetuning.finetune import FineTuning, OwnRollouts, finetune
    from ldm_hf.hub.publishing import publish_model
    from ldm_hf.modeling import LDMConfig, LDMModel, LDMPolicy, LDMProcessor
    from ldm_hf.policy_search import solve
    from ldm_hf.training.config import TrainingConfig
    from ldm_hf.training.loop import train

__version__ = "0.1.0.dev0"

__all__ = [
    "Agent",
    "FineTuning",
    "LDMConfig",
    "LDMModel",
    "LDMPolicy",
    "LDMProcessor",
    "OwnRollouts",
    "TrainingConfig",
    "build",
    "evaluate",
    "finetune",
    "list_environments",
    "load",
    "make",
    "make_vec",
    "open_datasets",
    "publish",
    "publish_model",
    "solve",
    "spec",
    "train",
]

_MODULES = {
    **dict.fromkeys(("Agent", "load"), "ldm_hf.evaluation.agent"),
    **dict.fromkeys(("LDMConfig", "LDMModel", "LDMPolicy", "LDMProcessor"), "ldm_hf.modeling"),
    **dict.fromkeys(("list_environments", "make", "make_vec", "spec"), "ldm_hf.env_registry.registry"),
    "build": "ldm_hf.dataset_builder.build.build",
    "open_datasets": "ldm_hf.dataset_builder.format.reader",
    "publish": "ldm_hf.dataset_builder.repository.publish",
    "publish_model": "ldm_hf.hub.publishing",
    "solve": "ldm_hf.policy_search",
    "TrainingConfig": "ldm_hf.training.config",
    "train": "ldm_hf.training.loop",
    "evaluate": "ldm_hf.evaluation.evaluate",
    **dict.fromkeys(("FineTuning", "OwnRollouts", "finetune"), "ldm_hf.finetuning.finetune"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(["__version__", *__all__])


register_lazily()
