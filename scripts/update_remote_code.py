#!/usr/bin/env python
"""Copy the model's code into every folder of pretrained/, as ``save_pretrained`` does: ``make remote-code``."""

from pathlib import Path

from transformers.dynamic_module_utils import custom_object_save

from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor

PRETRAINED = Path(__file__).parents[1] / "pretrained"


def write_code(folder: Path) -> None:
    """Write the files that ``trust_remote_code=True`` needs, and remove those that it no longer needs."""
    for stale in folder.glob("*_ldm.py"):
        stale.unlink()
    for part in (LDMConfig, LDMModel, LDMProcessor):
        custom_object_save(part, folder)


if __name__ == "__main__":
    for config in PRETRAINED.glob("*/config.json"):
        write_code(config.parent)
