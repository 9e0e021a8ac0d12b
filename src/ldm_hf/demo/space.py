"""The demo as a Gradio Space of the Hub: a folder that ``ldm publish`` brings there."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import gradio

import ldm_hf
from ldm_hf.demo.stage import Stage
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import ConfigError
from ldm_hf.hub.pretrained import model_folder
from ldm_hf.hub.spaces import PAGE
from ldm_hf.utils.files import replacing

_APP = '''"""Serves the demo."""

from pathlib import Path

from ldm_hf.demo.app import app, show
from ldm_hf.demo.stage import Stage

stage = Stage("model", {references}, {environments})
show(app(stage, {name!r}), "0.0.0.0", 7860)
'''


def write_space(stage: Stage, name: str, model: str, references: Sequence[Path], folder: Path) -> None:
    """Write the demo of a model as a Space: its code, the model, and the references of its environments.

    The libraries of the environments are installed, each in isolation, when a visitor first plays in them.

    Args:
        stage: says which environments there are.
        name: of the demo.
        model: folder, or name on the Hub.
        references: banks; policies in data folders are not taken along.
        folder: where to; an earlier Space there is replaced.

    Raises:
        ConfigError: the folder holds something else.
    """
    if folder.exists() and not (folder / PAGE).is_file() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds something else than a Space: choose another folder")
    environments = stage.environments()
    with replacing(folder) as made:
        made.mkdir()
        shutil.copytree(model_folder(model), made / "model", ignore=shutil.ignore_patterns("checkpoint-*", ".*"))
        taken = _take_references(stage, references, made / "references")
        code = _APP.format(
            references='[Path("references")]' if taken else "[]", environments=repr(environments), name=name
        )
        (made / "app.py").write_text(code, encoding="utf-8")
        (made / "requirements.txt").write_text(f"ldm_hf[demo,build]=={ldm_hf.__version__}\n")
        (made / "README.md").write_text(_card(name, environments), encoding="utf-8")
        (made / PAGE).write_text(json.dumps({"sdk": "gradio"}) + "\n")


def _take_references(stage: Stage, roots: Sequence[Path], folder: Path) -> bool:
    """Copy the entries of banks for the stage's environments; whether there are any."""
    if not roots:
        return False
    from ldm_hf.dataset_builder.bank.bank import ENTRY, reference_folders

    for environment, policy in reference_folders(roots).items():
        if environment in stage.specs and (policy.parent / ENTRY).is_file():
            library = EnvironmentId.parse(environment).library
            shutil.copytree(policy.parent, folder / library / policy.parent.name)
    return folder.is_dir()


def _card(name: str, environments: Sequence[str]) -> str:
    """The Space's README.md, which begins with its metadata."""
    listed = "\n".join(f"- `{environment}`" for environment in environments)
    return f"""---
title: {json.dumps(name)}
emoji: 🎮
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio.__version__}
python_version: "3.11"
app_file: app.py
pinned: false
license: apache-2.0
short_description: Watch a Large Decision Model act
tags:
- reinforcement-learning
- gymnasium
- ldm
---

# {name}

A Large Decision Model acts in these environments, beside their reference policies and a random one:

{listed}

Made by `ldm demo --space` of `ldm_hf`.
"""
