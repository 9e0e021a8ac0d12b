"""What a model's folder says, without loading the model: its configuration, and what it was trained on."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import CheckpointError, ConfigError
from ldm_hf.evaluation.results import HELD_OUT, TRAINED, UNKNOWN, UNSEEN_LIBRARY

_SETTINGS = "training.yaml"


def load_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a model, of a folder or a Hub name.

    Raises:
        CheckpointError: there is no such folder or repository, or it holds another type of model.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        is_name = not Path(folder).is_dir() and str(folder).count("/") == 1
        path = hf_hub_download(str(folder), "config.json") if is_name else Path(folder) / "config.json"
        config = json.loads(Path(path).read_text())
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise CheckpointError(f"{folder} holds no model: its config.json is missing or no JSON") from error
    if config.get("model_type") != "ldm":
        raise CheckpointError(f"{folder} holds a model of type {config.get('model_type')!r}; it must be 'ldm'")
    return config


def training_settings(folder: Path) -> dict[str, Any]:
    """The settings that made a model: ``training.yaml`` in its folder, or beside it, where training leaves it."""
    for path in (folder / _SETTINGS, folder.resolve().parent / _SETTINGS):
        if path.is_file():
            found = yaml.safe_load(path.read_text())
            return found if isinstance(found, dict) else {}
    return {}


def training_data(folder: Path) -> str | list[str]:
    """Where the data of a model's training are; ``ConfigError`` if its settings do not say."""
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
