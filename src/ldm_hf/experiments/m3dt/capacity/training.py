"""The optimizer steps of every stage, on batches in memory, and what they cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm_hf.experiments.m3dt.capacity.examples import Examples
from ldm_hf.experiments.m3dt.capacity.routers import (
    RouterSettings,
    Rows,
    clip_each_expert,
    own_experts,
    put_routers,
    routing_loss,
)
from ldm_hf.experiments.m3dt.stages import is_expert, is_router
from ldm_hf.modeling import LDMModel

_WARMUP, _DECAY = 0.05, 0.5  # shares of the steps

Groups = Sequence[Sequence[int]]
"""The tasks of each expert."""


@dataclass(frozen=True)
class Recipe:
    """How a stage is trained.

    Attributes:
        learning_rate: of AdamW without weight decay; linear warm-up, constant, linear decay to zero.
        clip: largest norm of a gradient.
        one_task: whether all rows of a step are of one task, as M3DT's are, or each of its own.
    """

    learning_rate: float
    clip: float = 1.0
    one_task: bool = False


def train_dense(
    model: LDMModel,
    examples: Examples,
    tasks: Sequence[int],
    steps: int,
    recipe: Recipe,
    generator: torch.Generator,
    watch: Mapping[int, Callable[[], None]] | None = None,
) -> int:
    """Train all that acts, on these tasks; ``watch`` has what is called after which step. Returns the FLOPs."""

    def loss() -> torch.Tensor:
        return _loss(model, examples, draw_tasks(tasks, examples.rows_per_step, recipe.one_task, generator), generator)

    chosen = _train_only(model, lambda name: "image_encoder" not in name)
    return _steps(chosen, steps, recipe, loss, watch=watch)


def train_experts(
    model: LDMModel, examples: Examples, groups: Groups, steps: int, recipe: Recipe, generator: torch.Generator
) -> int:
    """Train every expert on its own group of tasks, with a full batch in each step. Returns the FLOPs of all.

    All are trained at once, which is the same as one after the other: the loss is the sum over experts of each one's mean,
    gradients are clipped expert by expert, and AdamW's moments are those of each weight.
    """

    def loss() -> torch.Tensor:
        rows = [draw_tasks(group, examples.rows_per_step, recipe.one_task, generator) for group in groups]
        return _loss(model, examples, torch.cat(rows), generator, len(groups))

    chosen = _train_only(model, is_expert)
    with own_experts(model):
        return _steps(chosen, steps, recipe, loss, lambda: clip_each_expert(model, recipe.clip))


def train_routers(
    model: LDMModel,
    examples: Examples,
    groups: Groups,
    steps: int,
    recipe: Recipe,
    settings: RouterSettings,
    rows: Rows,
    generator: torch.Generator,
) -> int:
    """Train new routers on the tasks of all groups, and in the last steps the experts as well if it is a joint finish."""
    tasks = sorted(task for group in groups for task in group)
    group_of_task = groups_by_task(groups)
    routers = put_routers(model, settings, len(group_of_task), rows)

    def loss() -> torch.Tensor:
        rows.tasks_B = draw_tasks(tasks, examples.rows_per_step, recipe.one_task, generator)
        actions = _loss(model, examples, rows.tasks_B, generator)
        return actions + routing_loss(routers, settings, group_of_task[rows.tasks_B])

    total = round(steps * settings.steps)
    joint = round(total * settings.joint)
    own = replace(recipe, learning_rate=settings.learning_rate)
    flops = _steps(_train_only(model, is_router), total - joint, own, loss)
    if joint:
        both = _train_only(model, lambda name: is_router(name) or is_expert(name))
        flops += _steps(both, joint, replace(own, learning_rate=recipe.learning_rate / 3), loss)
    return flops


def groups_by_task(groups: Groups) -> torch.Tensor:
    """The group of each task, by its number; tasks that are in none have group 0."""
    found = torch.zeros(1 + max(task for group in groups for task in group), dtype=torch.int64)
    for index, group in enumerate(groups):
        found[list(group)] = index
    return found


def draw_tasks(tasks: Sequence[int], rows: int, one_task: bool, generator: torch.Generator) -> torch.Tensor:
    """The tasks of the rows of a step."""
    drawn = torch.randint(len(tasks), (1 if one_task else rows,), generator=generator)
    return torch.tensor(tasks)[drawn.expand(rows)]


def acting_parameters(model: LDMModel, examples: Examples, tasks: Sequence[int], rows: Rows) -> int:
    """How many numbers of the model get a gradient from these tasks: neither images, nor masked bins, nor unused symbols."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    rows.tasks_B = torch.tensor(tasks).repeat_interleave(max(1, 2048 // examples.transitions // len(tasks)))
    model.zero_grad()
    _loss(model, examples, rows.tasks_B, torch.Generator().manual_seed(0)).backward()
    found = sum(int((weight.grad != 0).sum()) for weight in model.parameters() if weight.grad is not None)
    model.zero_grad()
    return found


def _loss(
    model: LDMModel, examples: Examples, tasks_B: torch.Tensor, generator: torch.Generator, groups: int = 1
) -> torch.Tensor:
    """The sum over equal parts of the rows of each part's mean loss."""
    batch = examples.draw(tasks_B, generator)
    transitions = len(tasks_B) * examples.transitions / groups
    loss: torch.Tensor = model(**batch, num_items_in_batch=transitions).loss
    return loss


def _train_only(model: LDMModel, chosen: Callable[[str], bool]) -> list[nn.Parameter]:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen(name))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _steps(
    parameters: list[nn.Parameter],
    steps: int,
    recipe: Recipe,
    loss: Callable[[], torch.Tensor],
    clip: Callable[[], object] | None = None,
    watch: Mapping[int, Callable[[], None]] | None = None,
) -> int:
    """Optimizer steps; the FLOPs of all of them, of which one is counted."""
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    flops = 0
    for step in range(steps):
        warmup = min(1.0, (step + 1) / (_WARMUP * steps + 1))
        decay = min(1.0, (steps - step) / (_DECAY * steps))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * warmup * decay
        if step == 0:
            with FlopCounterMode(display=False) as counter:
                loss().backward()
            flops = steps * counter.get_total_flops()
        else:
            loss().backward()
        if clip is None:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        else:
            clip()
        optimizer.step()
        optimizer.zero_grad()
        if watch and step + 1 in watch:
            watch[step + 1]()
    return flops
