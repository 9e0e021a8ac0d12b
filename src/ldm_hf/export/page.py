"""A static page on which a model acts in the visitor's browser: in form a Space of the Hub, of files only."""

import html
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_hf.errors import ConfigError
from ldm_hf.export.int8 import with_int8_weights
from ldm_hf.export.onnx import export_onnx
from ldm_hf.export.runtime import check_export
from ldm_hf.export.vendor import VERSION, copy_runtime
from ldm_hf.hub.model_card import model_name
from ldm_hf.hub.pretrained import load_config, load_pretrained
from ldm_hf.hub.spaces import PAGE
from ldm_hf.utils.files import replacing

if TYPE_CHECKING:
    from ldm_hf.dataset_builder.reference.policy import ReferencePolicy

SITE = Path(__file__).with_name("site")
RUNNER = ("policy.js", "code.js", "spaces.js")
"""What of the page acts with a model; the rest is the page itself."""

_RUNTIME, _MODEL, _REFERENCES = "ort", "model", "references"
_CLASS = re.compile(r'static id = "([^"]+)";\s*static title = "([^"]+)"')


def environments() -> dict[str, str]:
    """The environments that the page has, in the order of its menu: titles by id."""
    titles = {}
    for path in (SITE / "classic_control.js", SITE / "grid_worlds.js", SITE / "breakout.js"):
        titles.update(dict(_CLASS.findall(path.read_text(encoding="utf-8"))))
    return titles


def export(
    model: str | Path,
    folder: Path,
    *,
    page: bool,
    int8: bool = True,
    references: Sequence[Path] = (),
    title: str | None = None,
) -> float:
    """Write a model for browsers: its graphs with a runner in JavaScript, or a page on which it acts.

    Args:
        model: folder, or name on the Hub.
        folder: where to; what an earlier export wrote there is replaced.
        page: the whole page; otherwise the graphs and the runner.
        int8: store weights as 8-bit integers, a quarter of the size.
        references: banks and data folders whose policies are the ghosts of the page.
        title: of the page; by default the model's name.

    Returns:
        The largest difference of a logit between the export and the model, over 300 steps.

    Raises:
        CheckpointError: there is no such model, or the export differs from it.
        ConfigError: the model was trained on none of the page's environments, or the folder holds something else.
        HubError: onnxruntime-web cannot be fetched.
    """
    config = load_config(model)
    known = {name: environments()[name] for name in environments() if name in (config.get("environments") or ())}
    if page and not known:
        raise ConfigError(
            f"{model} was trained on none of the environments that the page has: {', '.join(environments())}"
        )
    _refuse_others(folder)
    loaded, processor = load_pretrained(model)
    with replacing(folder) as made:
        made.mkdir()
        graphs = made / _MODEL
        graphs.mkdir()
        export_onnx(loaded, graphs, int8=int8)
        difference = check_export(with_int8_weights(loaded) if int8 else loaded, processor, graphs)
        copy_runtime(made / _RUNTIME)
        for path in SITE.iterdir() if page else (SITE / name for name in RUNNER):
            shutil.copyfile(path, made / path.name)
        if page:
            ghosts = _export_references(made, known, references)
            _write_page(made, model, config, known, ghosts, title)
    return difference


def _refuse_others(folder: Path) -> None:
    """See that a folder is new, empty, or an earlier export; ``ConfigError`` otherwise, because it would be replaced."""
    if folder.exists() and not (folder / _MODEL / "policy.json").is_file() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds something else than an export: choose another --output")


def _export_references(folder: Path, known: dict[str, str], roots: Sequence[Path]) -> dict[str, str]:
    """Write the reference of each environment that has one; their files by id."""
    if not roots:
        return {}
    from ldm_hf.dataset_builder.bank.bank import reference_folders
    from ldm_hf.dataset_builder.reference.policy import ReferencePolicy
    from ldm_hf.export.references import export_reference

    files, sources = {}, reference_folders(roots)
    (folder / _REFERENCES).mkdir()
    for environment in sorted(set(known) & set(sources)):
        policy = ReferencePolicy.load(sources[environment])
        files[environment] = f"{_REFERENCES}/{environment.replace('/', '--')}.onnx"
        export_reference(policy, _observed(policy), folder / files[environment])
    return files


def _observed(policy: "ReferencePolicy") -> dict[str, Any]:
    """The space of observations as the page gives them: channels of images last, where the reference reads them first."""
    space: dict[str, Any] = policy.spaces[0]
    if space["type"] != "Dict":
        return space
    parts = {key: _channels_last(part) for key, part in space["spaces"].items()}
    return {"type": "Dict", "spaces": parts}


def _channels_last(space: dict[str, Any]) -> dict[str, Any]:
    shape = space.get("shape", [])
    is_image = len(shape) == 3 and space["dtype"] == "uint8"
    return {**space, "shape": [*shape[1:], shape[0]]} if is_image else space


def _write_page(
    folder: Path,
    model: str | Path,
    config: dict[str, Any],
    known: dict[str, str],
    ghosts: dict[str, str],
    title: str | None,
) -> None:
    is_folder = Path(model).is_dir()
    name = title or (model_name(Path(model)) if is_folder else str(model))
    description = (
        f"A Large Decision Model, one transformer for {len(config.get('environments') or ())} environments, acts here "
        f"live in {len(known)} of them. Play, push it, take over, and watch what it remembers."
    )
    options = "".join(f'<option value="{html.escape(one)}">{html.escape(known[one])}</option>' for one in known)
    about = f"Runtime: onnxruntime-web {VERSION} (MIT licence)."
    values = {"title": name, "description": description, "about": about}
    text = (SITE / "index.html").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"{{{{{key}}}}}", html.escape(value))
    (folder / "index.html").write_text(text.replace("{{options}}", options), encoding="utf-8")
    facts = {"references": ghosts, "results": _results(Path(model), known) if is_folder else {}}
    (folder / PAGE).write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "README.md").write_text(_card(name, description, known, None if is_folder else str(model)))


def _results(folder: Path, known: dict[str, str]) -> dict[str, Any]:
    """What the model's evaluation says of the page's environments: returns of the model and of its reference."""
    try:
        report = json.loads((folder / "report.json").read_text())
        keys = ("mean_return", "deterministic_return")
        return {
            one["id"]: {"episodes": sum(map(len, one["returns"]))} | {key: one[key] for key in keys}
            for one in report["environments"]
            if one["id"] in known and None not in [one[key] for key in keys]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _card(name: str, description: str, known: dict[str, str], model: str | None) -> str:
    """The Space's README.md, which begins with its metadata."""
    models = f"models:\n- {model}\n" if model else ""
    listed = "\n".join(f"- {known[one]} (`{one}`)" for one in known)
    return f"""---
title: {json.dumps(name)}
emoji: 🎮
colorFrom: blue
colorTo: yellow
sdk: static
app_file: index.html
pinned: false
license: apache-2.0
short_description: A Large Decision Model acts in your browser
{models}tags:
- reinforcement-learning
- gymnasium
- ldm
---

# {name}

{description} Nothing is computed elsewhere, and nothing is fetched from another host.

{listed}

Made by `ldm export --page` of `ldm_hf`. The folder `ort` holds onnxruntime-web {VERSION} (MIT licence).
"""
