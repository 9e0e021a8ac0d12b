"""What a training run is trained on: all that there is but for degenerate references, or what its settings name."""

from collections.abc import Callable, Sequence

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset, open_datasets
from ldm_hf.errors import ConfigError
from ldm_hf.hub.model_card import Training, base_model_name, hub_datasets
from ldm_hf.modeling import LDMConfig
from ldm_hf.training.config import TrainingConfig

_NOT_SHOWN = (
    "data",
    "output_dir",
    "model",
    "environments",
)  # which the card says in words, or which help nobody elsewhere


def training_datasets(
    config: TrainingConfig, say: Callable[[str], None] = lambda line: None
) -> list[EnvironmentDataset]:
    """The datasets of a training run; where the settings do not name them, those of flagged references are left out.

    Args:
        config: the settings.
        say: told what is left out, and why.

    Raises:
        ConfigError: nothing is left.
        LDMError: as ``open_datasets``.
    """
    datasets = open_datasets(config.data, config.environments, cached=not config.stream)
    if config.environments is not None:
        return datasets
    named = () if isinstance(config.weights, str) else config.weights
    kept = []
    for dataset in datasets:
        if not dataset.info.flags or dataset.environment in named:
            kept.append(dataset)
        else:
            say(f"left out: {dataset.environment}: its reference {'; '.join(dataset.info.flags)}")
    if not kept:
        raise ConfigError(
            f"the references of all {len(datasets)} environments are degenerate; name them as `environments` to train on "
            f"them: the first, {datasets[0].environment}, {datasets[0].info.flags[0]}"
        )
    return kept


def described(
    config: TrainingConfig, datasets: Sequence[EnvironmentDataset], base_model: str | None = None
) -> Training:
    """What the card of the finished model says of its training.

    Args:
        config: the settings.
        datasets: what it is trained on.
        base_model: folder or name of the model that it is made from, where that is not the setting ``model``.
    """
    base = base_model or (None if config.model in LDMConfig.presets() else config.model)
    shown = {name: value for name, value in config.as_mapping().items() if name not in _NOT_SHOWN}
    return Training(
        None if base is None else base_model_name(base),
        hub_datasets(config.data),
        sorted(dataset.environment for dataset in datasets),
        sum(dataset.num_transitions for dataset in datasets),
        shown,
    )
