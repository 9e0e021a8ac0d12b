"""What tasks want of a model's weights: their gradients, and how far these agree."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ldm_hf.experiments.m3dt.capacity.examples import Examples
from ldm_hf.experiments.m3dt.grouping import agreement_points, even_clusters, random_groups
from ldm_hf.modeling import LDMModel

Gradient = dict[str, torch.Tensor]


def gradients_of(model: LDMModel, examples: Examples, tasks: Sequence[int]) -> list[Gradient]:
    """The gradient of the mean loss of each task, over all its states or over walks that are the same every time."""
    wanted = {name: weight for name, weight in model.named_parameters() if "image_encoder" not in name}
    for weight in wanted.values():
        weight.requires_grad_(True)
    found = []
    for task in tasks:
        batch, _ = examples.everything(torch.tensor([task]))
        gradients = torch.autograd.grad(model(**batch).loss, list(wanted.values()), allow_unused=True)
        pairs = zip(wanted, gradients, strict=True)
        found.append({name: gradient for name, gradient in pairs if gradient is not None})
    return found


def mean_cosine(gradients: Sequence[Gradient]) -> float:
    """The mean over all pairs of tasks of the cosine between their gradients of the layers, which all tasks share."""
    flat = torch.stack(
        [torch.cat([part.flatten() for name, part in each.items() if ".layers." in name]) for each in gradients]
    )
    flat = torch.nn.functional.normalize(flat.double(), dim=1)
    count = len(flat)
    return float((flat.sum(0).square().sum() - flat.square().sum()) / (count * (count - 1)))


def groups_of(
    model: LDMModel, examples: Examples, tasks: Sequence[int], grouping: str, experts: int, seed: int
) -> list[list[int]]:
    """The tasks of each expert, as the pipeline groups them."""
    if grouping == "random":
        return [
            [int(name) for name in group] for group in random_groups([f"{task:03d}" for task in tasks], experts, seed)
        ]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{task}.safetensors" for task in tasks]
        for file, gradient in zip(files, gradients_of(model, examples, tasks), strict=True):
            save_file({name: tensor.contiguous() for name, tensor in gradient.items()}, file)
        points_EC = agreement_points(files)
    if grouping == "direction":
        points_EC /= np.linalg.norm(points_EC, axis=1, keepdims=True).clip(min=np.finfo(float).tiny)
    labels = even_clusters(points_EC, experts, seed)
    return [[task for task, label in zip(tasks, labels, strict=True) if label == group] for group in range(experts)]
