"""Which environments share an expert: at random, or those that pull a backbone the same way (M3DT, section 4.2).

Shapes: E environments, D parameters.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.cluster.vq import ClusterError, kmeans2

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.errors import ConfigError
from ldm_hf.experiments.m3dt.config import ExpertsConfig
from ldm_hf.modeling import LDMModel, LDMProcessor
from ldm_hf.training.loop import make_mixture
from ldm_hf.utils.files import replacing
from ldm_hf.utils.progress import progress_bar

_SPLITS = 40  # of which the most even is kept
_RESTARTS = 40  # of each split, of which the tightest is kept; both numbers are the published code's

Groups = list[list[str]]


def random_groups(environments: Sequence[str], num_groups: int, seed: int) -> Groups:
    """Groups of as many environments each, or one more."""
    order = np.random.default_rng(seed).permutation(len(environments))
    return [sorted(environments[index] for index in part) for part in np.array_split(order, num_groups)]


def gradient_groups(
    model: LDMModel,
    processor: LDMProcessor,
    datasets: Sequence[EnvironmentDataset],
    config: ExpertsConfig,
    folder: Path,
) -> Groups:
    """Groups of environments whose gradients agree with the mean gradient in the same parameters.

    Of libraries that have little in common some gradients are a hundred times as long as others, and K-means puts each of
    the long ones in a group of its own. With the grouping ``direction`` all agreements have the length one.

    Args:
        model: the backbone.
        processor: its processor.
        datasets: the environments.
        config: ``num_experts``, ``grouping``, ``gradient_batches``, ``batch_size``, ``seed``.
        folder: where gradients are kept, one file per environment, as large as the model; those that are there are not
            computed again.

    Raises:
        ConfigError: the gradients do not fall into so many groups.
    """
    assert config.num_experts is not None
    files = [folder / f"{index}.safetensors" for index in range(len(datasets))]
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    with progress_bar("gradients", len(datasets), "environment") as bar:
        for file, dataset in zip(files, datasets, strict=True):
            if not file.exists():
                with replacing(file) as temporary:
                    save_file(environment_gradient(model, processor, dataset, config), temporary)
            bar.update(1)
    model.cpu()
    points_EC = agreement_points(files)
    if config.grouping == "direction":
        points_EC /= np.linalg.norm(points_EC, axis=1, keepdims=True).clip(min=np.finfo(float).tiny)
    labels = even_clusters(points_EC, config.num_experts, config.seed)
    return [
        [dataset.environment for dataset, label in zip(datasets, labels, strict=True) if label == group]
        for group in range(config.num_experts)
    ]


def environment_gradient(
    model: LDMModel, processor: LDMProcessor, dataset: EnvironmentDataset, config: ExpertsConfig
) -> dict[str, torch.Tensor]:
    """The gradient of the loss on one environment, by parameter, over ``gradient_batches`` batches of ``batch_size``."""
    mixture = make_mixture([dataset], config, model, processor)
    numbers = range(config.gradient_batches * config.train_batch_size)
    transitions = sum(map(mixture.length, numbers))
    at_once = config.per_device_train_batch_size or config.train_batch_size
    model.eval().zero_grad()
    for start in numbers[::at_once]:
        sequences = [mixture[number] for number in numbers[start : start + at_once]]
        batch = {name: tensor.to(model.device) for name, tensor in processor.collate(sequences).items()}
        model(**batch, num_items_in_batch=transitions).loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    gradient = {name: tensor.detach().cpu().clone() for name, tensor in found.items()}
    model.zero_grad()
    return gradient


def even_clusters(points_EC: np.ndarray, num_groups: int, seed: int) -> np.ndarray:
    """K-means of points, many times; of the splits the most even one, and of those the tightest. A group number a point.

    Raises:
        ConfigError: no split has a point in every group.
    """
    generator = np.random.default_rng(seed)
    splits = [_cluster(points_EC, num_groups, generator) for _ in range(_SPLITS)]
    found = [split for split in splits if split is not None]
    if not found:
        raise ConfigError(
            f"the gradients of {len(points_EC)} environments do not fall into {num_groups} groups; "
            "choose fewer experts, or grouping=random"
        )
    _, labels = min(found, key=lambda split: (np.bincount(split[1], minlength=num_groups).var(), split[0]))
    return labels


def _cluster(points_EC: np.ndarray, num_groups: int, generator: np.random.Generator) -> tuple[float, np.ndarray] | None:
    """The tightest of some runs of K-means: the sum of squared distances, and a group number a point."""
    best = None
    for _ in range(_RESTARTS):
        try:
            with np.errstate(invalid="ignore"):  # of points that are all the same
                centers, labels = kmeans2(points_EC, num_groups, iter=100, minit="++", missing="raise", rng=generator)
        except ClusterError:  # a group was left empty
            continue
        spread = float(((points_EC - centers[labels]) ** 2).sum())
        if best is None or spread < best[0]:
            best = spread, labels
    return best


def agreement_points(files: Sequence[Path]) -> np.ndarray:
    """Gradients times their mean, element by element, as E points with the same distances in E instead of D dimensions.

    K-means asks for distances only, and those follow from the products of all pairs, which are added up one parameter at
    a time: E x D numbers need never be in memory.
    """
    products_EE = np.zeros((len(files), len(files)))
    handles = [safe_open(file, "pt") for file in files]
    named = [set(handle.keys()) for handle in handles]
    for name in sorted(set().union(*named)):
        # Without images there is no gradient of what reads them.
        owners = [index for index, names in enumerate(named) if name in names]
        gradients = torch.stack([handles[index].get_tensor(name).double().flatten() for index in owners])
        agreement = gradients * gradients.sum(0) / len(files)
        products_EE[np.ix_(owners, owners)] += (agreement @ agreement.T).numpy()
    values_E, vectors_EE = np.linalg.eigh(products_EE)
    return vectors_EE * np.sqrt(values_E.clip(min=0))
