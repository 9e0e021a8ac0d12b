"""Loading trained models, from a folder or the Hub; what is missing is said before torch is imported."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_hf.errors import CheckpointError

if TYPE_CHECKING:
    from ldm_hf.modeling import LDMModel, LDMProcessor

SETTINGS = "training.yaml"
"""Where training keeps its settings: in its output folder, beside the folder of the model."""


def load_pretrained(folder: str | Path) -> "tuple[LDMModel, LDMProcessor]":
    """Load a model and its processor through the Auto classes, from a folder or the Hub.

    Raises:
        CheckpointError: there is no such folder or repository, or it holds another type of model, or damaged files.
    """
    import torch
    from transformers import AutoModel, AutoProcessor
    from transformers.utils.logging import disable_progress_bar

    load_config(folder)
    disable_progress_bar()  # transformers' own, for weights: they would break up ours
    try:
        model: LDMModel = AutoModel.from_pretrained(folder, dtype=torch.float32)
        return model, AutoProcessor.from_pretrained(folder)
    except Exception as error:  # safetensors and strict configurations raise errors of their own
        raise CheckpointError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error


def model_folder(model: str | Path) -> Path:
    """The folder of a model; one that is on the Hub is downloaded to its cache first.

    Raises:
        CheckpointError: as ``load_config``.
    """
    load_config(model)
    if not _is_hub_name(model):
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(str(model)))
    except (OSError, HfHubHTTPError) as error:
        raise CheckpointError(f"{model} cannot be downloaded: {' '.join(str(error).split())[:300]}") from error


def load_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a model, of a folder or a Hub name.

    Raises:
        CheckpointError: there is no such folder or repository, or it holds another type of model.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    is_name = _is_hub_name(folder)
    try:
        path = hf_hub_download(str(folder), "config.json") if is_name else Path(folder) / "config.json"
        config = json.loads(Path(path).read_text())
    except (OSError, ValueError, HfHubHTTPError) as error:
        what = "its config.json cannot be read, or is invalid JSON"
        if is_name:
            what = "there is no such folder, and no such model on the Hub that can be read from here"
        raise CheckpointError(f"{folder} holds no model: {what}") from error
    if config.get("model_type") != "ldm":
        raise CheckpointError(f"{folder} holds a model of type {config.get('model_type')!r}; it must be 'ldm'")
    return config


def training_settings(folder: Path) -> dict[str, Any]:
    """The settings that made a model, from its folder or from beside it, where training leaves them; {} without any."""
    for path in (folder / SETTINGS, folder.resolve().parent / SETTINGS):
        if path.is_file():
            import yaml

            found = yaml.safe_load(path.read_text())
            return found if isinstance(found, dict) else {}
    return {}


def _is_hub_name(folder: str | Path) -> bool:
    """Whether a model is to be looked for on the Hub: no folder, and nothing that reads like the path of one.

    Raises:
        CheckpointError: it is the path of a folder that is not there.
    """
    text, path = str(folder), Path(folder)
    if path.is_dir():
        return False
    if text.count("/") != 1 or text.startswith((".", "/", "~")) or Path(text.partition("/")[0]).exists():
        raise CheckpointError(f"{folder}: no such folder; a model of the Hub is named <namespace>/<name>")
    return True
