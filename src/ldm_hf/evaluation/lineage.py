"""What a model's folder says, without loading the model: its configuration, and what it was trained on."""

from collections.abc import Collection
from pathlib import Path

from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import ConfigError
from ldm_hf.evaluation.results import HELD_OUT, TRAINED, UNKNOWN, UNSEEN_LIBRARY, EnvironmentResult
from ldm_hf.hub.pretrained import load_config, training_settings

REPORT = "report.json"


def published_references(folder: Path) -> list[EnvironmentResult]:
    """The results of the report in a model's folder, whose references other rollouts can be measured against.

    Raises:
        ConfigError: there is none.
        DatasetFormatError: it cannot be read.
    """
    from ldm_hf.evaluation.report import Report

    load_config(folder)
    if not (folder / REPORT).is_file():
        raise ConfigError(f"{folder} has no {REPORT}, so that its references are not known; name their data by --data")
    return Report.load(folder / REPORT).environments


def training_data(folder: Path) -> str | list[str]:
    """Where the data of a model's training are; ``ConfigError`` if its settings do not say."""
    load_config(folder)
    data = training_settings(folder).get("data")
    if not data:
        raise ConfigError(f"{folder} does not say what data it was trained on; name those with references by --data")
    return data


def relation(environment: str, trained: Collection[str] | None) -> str:
    """How an environment relates to those that a model was trained on."""
    if not trained:
        return UNKNOWN
    if environment in trained:
        return TRAINED
    libraries = {EnvironmentId.parse(one).library for one in trained}
    return HELD_OUT if EnvironmentId.parse(environment).library in libraries else UNSEEN_LIBRARY
