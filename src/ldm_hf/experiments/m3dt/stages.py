"""What the later stages train: one expert beside the backbone, or the routers (M3DT, arXiv 2505.24378, section 4.2)."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm_hf.errors import CheckpointError, ConfigError
from ldm_hf.experiments.m3dt.config import ExpertsConfig
from ldm_hf.hub.pretrained import load_pretrained
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.modeling.experts_ldm import EXPERT_WEIGHTS, LDMExperts
from ldm_hf.training.model import trained_model


def load_stage(config: ExpertsConfig) -> tuple[LDMModel, LDMProcessor]:
    """The model that a stage trains, and its processor. What the stage leaves as it is needs no gradient.

    The stage ``experts`` gives a model with one expert.

    Raises:
        ConfigError: the model is none for this stage.
        CheckpointError: the folder holds no Large Decision Model.
    """
    if config.stage == "experts":
        backbone, processor = load_backbone(config)
        model = attach_experts(backbone, 1)
        _train_only(model, is_expert)
        return model, processor
    model, processor = _trained_model(config)
    if model.config.num_experts < 2:
        raise ConfigError(f"{config.model} has no experts to choose from; stage routers comes after stage experts")
    model.config.router_aux_loss_coef = config.router_aux_loss_coef
    _train_only(model, is_router)
    return model, processor


def load_backbone(config: ExpertsConfig) -> tuple[LDMModel, LDMProcessor]:
    """The model to which experts are attached, and its processor; raises ``ConfigError`` if it has some."""
    model, processor = _trained_model(config)
    if model.config.num_experts:
        raise ConfigError(f"{config.model} has experts already; stage experts starts from a backbone")
    return model, processor


def is_expert(name: str) -> bool:
    """Whether a parameter of this name is one of the experts'."""
    return ".experts." in name and name.endswith(EXPERT_WEIGHTS)


def is_router(name: str) -> bool:
    """Whether a parameter of this name is a router's."""
    return ".experts.router." in name


def attach_experts(model: LDMModel, num_experts: int, **router: Any) -> LDMModel:
    """A model of the same weights with new experts, which say nothing yet: it computes what ``model`` does.

    Args:
        model: the backbone.
        num_experts: of each block.
        **router: fields of the configuration that say what routers are.
    """
    config = copy.deepcopy(model.config)
    for name, value in {"num_experts": num_experts, **router}.items():
        setattr(config, name, value)
    made = LDMModel(config)
    missing, unexpected = made.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and all(is_expert(name) or is_router(name) for name in missing)
    return made


@torch.no_grad()
def put_expert(model: LDMModel, index: int, expert: LDMModel) -> None:
    """Make the only expert of one model the expert ``index`` of another on the same backbone.

    Raises:
        CheckpointError: it was trained beside another backbone.
    """
    own, found = model.state_dict(), expert.state_dict()
    for name, tensor in found.items():
        if not (is_expert(name) or is_router(name)) and not torch.equal(own[name], tensor):
            raise CheckpointError(f"expert {index} was trained beside another backbone: their {name} differ")
    for target, source in zip(_experts(model), _experts(expert), strict=True):
        width = source.down_proj.in_features
        part = slice(index * width, (index + 1) * width)
        target.gate_proj.weight[part] = source.gate_proj.weight
        target.up_proj.weight[part] = source.up_proj.weight
        target.down_proj.weight[:, part] = source.down_proj.weight


def merge_experts(backbone: LDMModel, folders: Sequence[Path], config: ExpertsConfig) -> LDMModel:
    """A model with the experts of all these folders, in this order, and routers that know nothing yet."""
    width = config.router_hidden_size or 4 * backbone.config.hidden_size
    layers = config.router_hidden_layers
    merged = attach_experts(backbone, len(folders), router_hidden_layers=layers, router_hidden_size=width)
    for index, folder in enumerate(folders):
        expert, _ = load_pretrained(folder)
        put_expert(merged, index, expert)
    return merged


def _experts(model: LDMModel) -> list[LDMExperts]:
    return [module for module in model.modules() if isinstance(module, LDMExperts)]


def _train_only(model: nn.Module, chosen: Callable[[str], bool]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen(name))


def _trained_model(config: ExpertsConfig) -> tuple[LDMModel, LDMProcessor]:
    if config.model in LDMConfig.presets():
        raise ConfigError(f"stage {config.stage} starts from a trained model: set model to its folder")
    return trained_model(config)
