"""What can be said of a run before anything is opened: what this machine lacks for it. Needs neither torch nor data."""

import importlib.util
import os
import tempfile
from pathlib import Path

from ldm_hf.errors import ConfigError
from ldm_hf.hub.pretrained import load_config
from ldm_hf.training.config import TRACKERS, TrainingConfig
from ldm_hf.utils.dependencies import require

_PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX")
}  # any of them; other trackers need the package of their name


def check_machine(config: TrainingConfig, shares: bool = True) -> None:
    """See that trackers and adapters are installed, the model is there, the batch can be shared out, and the output written.

    Args:
        config: the settings.
        shares: whether the processes of a launcher share the batch; jobs are processes of their own.

    Raises:
        ConfigError: one of them is not so; the message says what to install or to set.
        CheckpointError: ``model`` is neither a preset nor a model.
        MissingDependencyError: adapters are wanted, and peft is not installed.
    """
    if config.report_to == "all":
        if not any(map(_is_installed, TRACKERS)):
            raise ConfigError(
                "report_to=all finds no tracker installed: pip install tensorboard, or set report_to=none"
            )
    elif config.report_to != "none" and not _is_installed(config.report_to):
        raise ConfigError(
            f"report_to={config.report_to} needs a package that is not installed: pip install {config.report_to}, or set "
            "report_to=none"
        )
    if "/" in config.model or Path(config.model).exists():  # else it is the name of a preset
        load_config(config.model)
    if config.lora_rank is not None:
        require("LoRA", "lora")
    if shares:
        config.accumulation_steps(int(os.environ.get("WORLD_SIZE", "1")))
    if os.environ.get("RANK", "0") == "0":  # It alone writes.
        _check_output(Path(config.output_dir))


def _is_installed(tracker: str) -> bool:
    return any(importlib.util.find_spec(package) for package in _PACKAGES.get(tracker, (tracker,)))


def _check_output(output: Path) -> None:
    """Try to write to the folder, or to the one in which it would be made; nothing is left behind."""
    folder = output.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(f"output {output} cannot be a folder: {folder} is a file; set another output")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"output {output} cannot be written: {folder}: {error.strerror}; set another output"
        ) from error
