"""What a training run is trained on: all that there is but for degenerate references, or what its settings name."""

from collections.abc import Callable

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset, open_datasets
from ldm_hf.errors import ConfigError
from ldm_hf.training.config import TrainingConfig


def training_datasets(
    config: TrainingConfig, say: Callable[[str], None] = lambda line: None
) -> list[EnvironmentDataset]:
    """The datasets of a training run; where the settings name no environments, those of flagged references are left out.

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
    kept = [dataset for dataset in datasets if not dataset.info.flags]
    for dataset in datasets:
        if dataset.info.flags:
            say(f"left out: {dataset.environment}: its reference {'; '.join(dataset.info.flags)}")
    if not kept:
        raise ConfigError(
            f"the references of all {len(datasets)} environments are degenerate; name them as `environments` to train on "
            f"them: the first, {datasets[0].environment}, {datasets[0].info.flags[0]}"
        )
    return kept
