"""Tasks that come later: new experts beside those that are there, or a model that is trained further."""

from collections.abc import Sequence

import torch

from ldm_hf.experiments.m3dt.capacity.examples import Examples
from ldm_hf.experiments.m3dt.capacity.routers import experts_of
from ldm_hf.experiments.m3dt.capacity.training import Groups, Recipe, train_experts
from ldm_hf.experiments.m3dt.stages import attach_experts
from ldm_hf.modeling import LDMModel


def add_experts(
    backbone: LDMModel,
    old: LDMModel,
    examples: Examples,
    groups: Groups,
    steps: int,
    recipe: Recipe,
    generator: torch.Generator,
) -> tuple[LDMModel, int]:
    """A model with the experts of ``old`` and one more for each group of new tasks, of which only these were trained.

    Returns:
        The model, whose routers know nothing yet, and the FLOPs.
    """
    new = attach_experts(backbone, len(groups)).eval()
    flops = train_experts(new, examples, groups, steps, recipe, generator)
    return join_experts(backbone, [old, new]), flops


@torch.no_grad()
def join_experts(backbone: LDMModel, models: Sequence[LDMModel]) -> LDMModel:
    """A model with the experts of all these models on the same backbone, one model's after the other's."""
    joined = attach_experts(backbone, sum(model.config.num_experts for model in models)).eval()
    for target, *sources in zip(experts_of(joined), *map(experts_of, models), strict=True):
        target.gate_proj.weight.copy_(torch.cat([each.gate_proj.weight for each in sources]))
        target.up_proj.weight.copy_(torch.cat([each.up_proj.weight for each in sources]))
        target.down_proj.weight.copy_(torch.cat([each.down_proj.weight for each in sources], 1))
    return joined
