"""LoRA (arXiv 2106.09685) through peft: low-rank adapters in the backbone's linear layers; all else is frozen.

A model is adapted in place: it stays an ``LDMModel``, and the loop trains it as any other. Nothing that is written needs
peft to be read: models are merged, and the adapter alone lies beside them.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ldm_hf.modeling import LDMConfig, LDMModel
from ldm_hf.utils.dependencies import require

_LAYERS = r"backbone\.layers\..*_proj"
_ADAPTER = "lora_"

Weights = dict[str, Any]
"""Tensors by name, as ``get_model_state_dict`` gives them."""


def adapt(model: LDMModel, rank: int) -> None:
    """Put adapters of a rank into a model's backbone and freeze everything else; the model computes what it did before.

    What an adapter adds is scaled by 2, as is usual, whatever the rank.

    Raises:
        MissingDependencyError: peft is not installed.
    """
    peft = _peft()
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_LAYERS), model)


def is_adapted(model: LDMModel) -> bool:
    """Whether a model has adapters."""
    return hasattr(model, "peft_config")


def adapter_weights(weights: Weights) -> Weights:
    """Those of an adapted model's weights that are trained."""
    return {name: tensor for name, tensor in weights.items() if _ADAPTER in name}


def plain_weights(model: LDMModel, weights: Weights) -> Weights:
    """The weights of the plain model that computes the same as ``model`` would with ``weights``."""
    if not is_adapted(model):
        return weights
    with torch.no_grad():
        merged: torch.nn.Module = _whole(model, weights).merge_and_unload()
    return {name: tensor.detach() for name, tensor in merged.state_dict().items()}


def save_adapter(model: LDMModel, weights: Weights, folder: Path) -> None:
    """Write what ``PeftModel.from_pretrained`` puts on top of the model that training began from."""
    _whole(model, weights).save_pretrained(folder, save_embedding_layers=False)


def _whole(model: LDMModel, weights: Weights) -> Any:
    """A copy of an adapted model with other weights, as peft wraps models."""
    peft = _peft()
    with torch.device("meta"):  # no memory, and nothing drawn from the random state that checkpoints keep
        copy = LDMModel(LDMConfig.from_dict(model.config.to_dict()))
        wrapped = peft.get_peft_model(copy, model.peft_config["default"])
    # Clones: peft merges in place, and these tensors may be those of the model that is being trained.
    copy.load_state_dict({name: tensor.cpu().clone() for name, tensor in weights.items()}, assign=True)
    return wrapped


def _peft() -> ModuleType:
    require("LoRA", "lora")
    import peft

    return peft
