"""What changes the weights: AdamW (paper section 4.4), or Muon for the matrices of the layers and AdamW for all others."""

from collections.abc import Sequence

import torch

from ldm_hf.errors import ConfigError
from ldm_hf.training.config import TrainingConfig

Optimizers = Sequence[torch.optim.Optimizer]


def make_optimizers(model: torch.nn.Module, config: TrainingConfig) -> Optimizers:
    """The optimizers of a run, each trained parameter in one of them.

    Muon (https://kellerjordan.github.io/posts/muon/) makes an update of a matrix orthogonal, so that all its directions are
    learned alike. It is scaled to the size that AdamW's updates have (arXiv 2502.16982, section 2.2), so that one learning
    rate suits both. Embeddings, the head, image encoder, biases and norms stay with AdamW, as its authors recommend.

    Raises:
        ConfigError: Muon has nothing to change, or torch is too old to have it.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    layered = {
        name: parameter
        for name, parameter in trained.items()
        if config.optim == "muon" and _is_for_muon(name, parameter)
    }
    others = [parameter for name, parameter in trained.items() if name not in layered]
    groups = [
        {"params": [one for one in others if one.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [one for one in others if one.ndim <= 1], "weight_decay": 0.0},  # biases and norms
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=True)
    if config.optim != "muon":
        return [adamw]
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"optim=muon needs torch 2.9, and this is {torch.__version__}: install it, or leave optim out"
        )
    if not layered:
        raise ConfigError("optim=muon changes matrices of layers, of which none are trained here: leave optim out")
    muon = torch.optim.Muon(
        list(layered.values()),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw, muon]


def _is_for_muon(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether it is a matrix of a layer; those of adapters are factors of one, whose product is what would matter."""
    return parameter.ndim == 2 and ".layers." in name and ".lora_" not in name
