"""Routers that are compared: what they are, and how they are trained.

Shapes: B rows, T transitions, H the hidden size, G experts, I the width of an expert.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ldm_hf.modeling import LDMConfig, LDMModel
from ldm_hf.modeling.experts_ldm import LDMExperts


@dataclass(frozen=True)
class RouterSettings:
    """A kind of router and its training.

    Attributes:
        layers: hidden ones. 1 is ``LDMRouter``; M3DT's has 4, each four times as wide as the model.
        width: of each, in hidden sizes.
        by_task: it reads the number of the task instead of what the block reads: a table of logits.
        temperature: by which logits are divided.
        top_k: experts that may have a weight; 0 is all.
        balance: weight of the loss that wants all experts to be used alike (arXiv 2101.03961, equation 4).
        supervised: weight of the cross-entropy between its weights and the expert of the row's task.
        joint: share of its steps, the last ones, in which experts are trained as well.
        steps: times those of the stage.
        learning_rate: of the stage.
    """

    layers: int = 1
    width: int = 1
    by_task: bool = False
    temperature: float = 1.0
    top_k: int = 0
    balance: float = 0.0
    supervised: float = 0.0
    joint: float = 0.0
    steps: float = 1.0
    learning_rate: float = 1e-2


_DEEP = RouterSettings(layers=4, width=4, learning_rate=3e-3)

ROUTERS = {
    "one": RouterSettings(),
    "five": _DEEP,
    "task": RouterSettings(by_task=True, learning_rate=0.1),
    "supervised": RouterSettings(supervised=1.0),
    "five-supervised": replace(_DEEP, supervised=1.0),
    "five-supervised-top1": replace(_DEEP, supervised=1.0, top_k=1),
    "five-supervised-long": replace(_DEEP, supervised=1.0, steps=4),
    "five-supervised-joint": replace(_DEEP, supervised=1.0, joint=0.25),
    "long": RouterSettings(steps=4),
    "cold": RouterSettings(temperature=0.25),
    "top1": RouterSettings(top_k=1),
    "top2": RouterSettings(top_k=2),
    "balanced": RouterSettings(balance=0.01),
    "joint": RouterSettings(joint=0.5),
}


class Rows:
    """Of which task each row of the batch is that a model is about to read; whoever calls the model says so here."""

    tasks_B: torch.Tensor  # noqa: N815 # the shape


class StudyRouter(nn.Module):
    """A router of any of these kinds; ``logits`` are those of its last call."""

    logits: torch.Tensor

    def __init__(self, config: LDMConfig, num_tasks: int, settings: RouterSettings, rows: Rows):
        super().__init__()
        self._settings, self._rows = settings, rows
        if settings.by_task:
            self.table = nn.Parameter(torch.zeros(num_tasks, config.num_experts))
            return
        widths = [config.hidden_size, *[settings.width * config.hidden_size] * settings.layers]
        layers = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.SiLU())]
        self.network = nn.Sequential(*layers, nn.Linear(widths[-1], config.num_experts))
        if settings.layers == 1:  # as those of LDMRouter; through several layers as small ones little would pass
            for layer in self.network:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=config.initializer_range)
                    nn.init.zeros_(layer.bias)

    def forward(self, inputs_BTH: torch.Tensor) -> torch.Tensor:
        if self._settings.by_task:
            logits_BTG = self.table[self._rows.tasks_B].unsqueeze(1).expand(-1, inputs_BTH.shape[1], -1)
        else:
            logits_BTG = self.network(inputs_BTH)
        self.logits = logits_BTG / self._settings.temperature
        return only_top(self.logits, self._settings.top_k)


def only_top(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """The ``top_k`` highest of the last axis, minus infinity elsewhere; all where ``top_k`` is 0."""
    if top_k and top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits


class GivenRouter(nn.Module):
    """All the weight on the expert of the row's task, which is given."""

    def __init__(self, group_of_task: torch.Tensor, num_experts: int, rows: Rows):
        super().__init__()
        self._groups, self._num_experts, self._rows = group_of_task, num_experts, rows

    def forward(self, inputs_BTH: torch.Tensor) -> torch.Tensor:
        chosen_BG = F.one_hot(self._groups[self._rows.tasks_B], self._num_experts).to(inputs_BTH)
        return chosen_BG.log().unsqueeze(1).expand(-1, inputs_BTH.shape[1], -1)


class OwnExperts(nn.Module):
    """Stands in for ``LDMExperts`` where rows come expert by expert, equally many each: each works on its own only.

    One batched product for all experts. With a loss that is added up over experts, each has the gradient that it has alone.
    """

    def __init__(self, experts: LDMExperts):
        super().__init__()
        self.experts = experts

    def forward(self, inputs_BTH: torch.Tensor) -> torch.Tensor:
        experts = self.experts
        shape = (experts.num_experts, -1)
        grouped_GRH = inputs_BTH.reshape(*shape, inputs_BTH.shape[-1])
        gate_GIH, up_GIH = (each.weight.unflatten(0, shape) for each in (experts.gate_proj, experts.up_proj))
        inner_GRI = experts.act_fn(grouped_GRH @ gate_GIH.mT) * (grouped_GRH @ up_GIH.mT)
        return (inner_GRI @ experts.down_proj.weight.T.unflatten(0, shape)).view_as(inputs_BTH)


@contextlib.contextmanager
def own_experts(model: LDMModel) -> Iterator[None]:
    """Within it, rows of the model's inputs are split among its experts in order."""
    feed_forwards: list[Any] = [layer.mlp for layer in model.backbone.layers]
    whole = [each.experts for each in feed_forwards]
    try:
        for each, experts in zip(feed_forwards, whole, strict=True):
            each.experts = OwnExperts(experts)
        yield
    finally:
        for each, experts in zip(feed_forwards, whole, strict=True):
            each.experts = experts


@torch.no_grad()
def clip_each_expert(model: LDMModel, max_norm: float) -> None:
    """``clip_grad_norm_`` of each expert by itself, over all layers."""
    parts_G = []
    for experts in experts_of(model):
        shape = (experts.num_experts, -1)
        rows = (experts.gate_proj.weight, experts.up_proj.weight)
        parts_G += [each.grad.unflatten(0, shape) for each in rows if each.grad is not None]
        if experts.down_proj.weight.grad is not None:
            parts_G.append(experts.down_proj.weight.grad.T.unflatten(0, shape))
    norms_G = torch.stack([part.square().sum((1, 2)) for part in parts_G]).sum(0).sqrt()
    factors_G = (max_norm / (norms_G + 1e-6)).clamp(max=1)
    for part in parts_G:
        part.mul_(factors_G[:, None, None])


def put_routers(model: LDMModel, settings: RouterSettings, num_tasks: int, rows: Rows) -> list[StudyRouter]:
    """Give the model new routers of this kind, which are returned, a layer each."""
    made = []
    for experts in experts_of(model):
        router = StudyRouter(model.config, num_tasks, settings, rows)
        experts.router = router  # type: ignore[assignment]
        made.append(router)
    return made


def give_routing(model: LDMModel, group_of_task: torch.Tensor, rows: Rows) -> None:
    """Put all the weight on the expert of each row's task."""
    for experts in experts_of(model):
        experts.router = GivenRouter(group_of_task, experts.num_experts, rows)  # type: ignore[assignment]


def experts_of(model: LDMModel) -> list[LDMExperts]:
    """Of each layer."""
    return [module for module in model.modules() if isinstance(module, LDMExperts)]


def routing_loss(routers: list[StudyRouter], settings: RouterSettings, groups_B: torch.Tensor) -> torch.Tensor:
    """What is added to the loss of the actions, averaged over layers."""
    total = torch.zeros(())
    for router in routers:
        logits_NG = router.logits.flatten(0, 1)
        if settings.supervised:
            wanted_N = groups_B.repeat_interleave(router.logits.shape[1])
            total = total + settings.supervised * F.cross_entropy(logits_NG, wanted_N)
        if settings.balance:
            weights_NG, size = logits_NG.softmax(-1), logits_NG.shape[-1]
            share_G = F.one_hot(weights_NG.argmax(-1), size).float().mean(0)
            total = total + settings.balance * size * (share_G * weights_NG.mean(0)).sum()
    return total / len(routers)
