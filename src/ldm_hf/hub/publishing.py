"""Publishes a trained model to the Hub: one commit of weights, configuration, code and card, verified afterwards."""

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldm_hf.errors import CheckpointError, ConfigError, HubError
from ldm_hf.hub.client import LocalFile, check_account, commit, hub_failures, newest_commit, remote_files
from ldm_hf.hub.model_card import (
    CARD,
    EVALUATION_FILES,
    NOTES_MARK,
    Training,
    evaluated_weights,
    loaded_as,
    model_name,
    training_card,
    weights_hash,
)
from ldm_hf.hub.pretrained import load_config

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

PREFIX = "ldm-"
"""Before a folder's name in the default name of its repository."""

_CONFIG = "config.json"
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
_PUBLISHED = re.compile(
    rf"{_WEIGHTS.pattern}|config\.json|(pre)?processor_config\.json|\w+_ldm\.py|training\.yaml"
    rf"|{'|'.join(map(re.escape, EVALUATION_FILES))}"
)
"""The files of a model folder that are published; all others, checkpoints and secrets among them, stay where they are."""


@dataclass(frozen=True)
class ModelChange:
    """What publishing does to the repository of a model, or of a page on which it acts, on the Hub.

    Attributes:
        repository: its name.
        files: all that will be there of this model.
        replaced: paths of files that are there with other content, but for a card that ldm wrote.
        stale: paths of weights that are there and no longer belong to the model: they would be loaded with it, or instead.
        kind: of repository: "model" or "space".
    """

    repository: str
    files: list[LocalFile]
    replaced: list[str]
    stale: list[str]
    kind: str = "model"


def refuse_replacing(change: ModelChange) -> None:
    """Agree to nothing: raises ``ConfigError``."""
    raise ConfigError(
        f"nothing was published: it would replace {len(change.replaced)} files of {change.repository} and delete "
        f"{len(change.stale)}; say --yes if that is wanted"
    )


def publish_model(
    folder: str | Path,
    namespace: str,
    *,
    name: str | None = None,
    report: str | Path | None = None,
    private: bool = False,
    agree: Callable[[ModelChange], None] = refuse_replacing,
    progress: Callable[[str, int, int], None] = lambda repository, done, total: None,
) -> str:
    """Bring a model folder to the Hub, as the model repository ``<namespace>/<name>``.

    What belongs to the model is sent as one commit: weights, configuration, processor, code, card, and report and plots of
    its evaluation. Other files of the folder are not sent, and other files of the Hub are not touched. The card's code
    loads the model by its name on the Hub; what the owner wrote below the card's last line there stays.

    Args:
        folder: model folder, as training leaves it.
        namespace: user or organisation.
        name: of the repository; by default ``ldm-`` and the name of the folder, or of the one around a folder ``model``.
        report: folder of an evaluation of this model, whose card, report and plots are published with it.
        private: whether a repository that is made is private; one that is there stays as it is.
        agree: asked before files of the Hub are replaced or deleted.
        progress: told the repository, the bytes that are there, and the bytes that there will be.

    Returns:
        Name of the repository.

    Raises:
        CheckpointError: the folder holds no Large Decision Model, or not all of its weights.
        ConfigError: the report is of other weights; or files of the Hub would be replaced, and ``agree`` was not given.
        DatasetFormatError: a file changes while it is published.
        HubError: the Hub refuses, cannot be reached, has another type of model there, or holds something else afterwards.
    """
    from huggingface_hub import HfApi

    root = Path(folder)
    sources = _model_files(root) | _report_files(root, report)
    own = model_name(root)
    repository = f"{namespace}/{name or (own if own.startswith(PREFIX) else PREFIX + own)}"
    api = HfApi()
    check_account(api, namespace)
    with tempfile.TemporaryDirectory() as scratch, hub_failures(repository):
        head = newest_commit(api, repository, "model")
        there = {} if head is None else remote_files(api, repository, "model", head)
        known = _read_published(repository, head, there)
        sources[CARD] = _write_card(root, sources.get(CARD), repository, known, Path(scratch))
        change = _plan(repository, sources, there, known)
        if change.replaced or change.stale:
            agree(change)
        if head is None:
            api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
            head = newest_commit(api, repository, "model")
        send(api, change, there, head, progress)
    return repository


def _model_files(root: Path) -> dict[str, Path]:
    """The files of a model folder that are published, by name."""
    load_config(root)
    if not root.is_dir():
        raise CheckpointError(f"{root} is not a folder: a model of the Hub is published already")
    found = {path.name: path for path in sorted(root.iterdir()) if path.is_file() and _PUBLISHED.fullmatch(path.name)}
    index = root / "model.safetensors.index.json"
    needed = {"model.safetensors"}
    if index.name in found and "model.safetensors" not in found:
        needed = set(_read_json(index).get("weight_map", {}).values()) or needed
    missing = sorted((needed | {"processor_config.json"}) - set(found))
    if missing:
        raise CheckpointError(f"{root} cannot be published: it has no {', '.join(missing[:3])}")
    return found


def _report_files(root: Path, report: str | Path | None) -> dict[str, Path]:
    """Card, report and plots of an evaluation, by name: those that are named, which must be of these weights."""
    if report is None:
        return {}
    folder = Path(report)
    about, weights = evaluated_weights(folder), weights_hash(root)
    if about != weights:
        what = "has no report.json of one model" if about is None else "is about other weights"
        raise ConfigError(f"the report {folder} {what}: run `ldm evaluate {root} --output {folder}` first")
    return {name: folder / name for name in EVALUATION_FILES if (folder / name).is_file()}


def _read_published(name: str, head: str | None, there: "Mapping[str, RepoFile]") -> dict[str, str]:
    """Texts of the configuration and the card that the Hub has; ``HubError`` if another type of model is there."""
    from huggingface_hub import hf_hub_download

    texts = {
        path: Path(hf_hub_download(name, path, revision=head)).read_text(encoding="utf-8", errors="replace")
        for path in (_CONFIG, CARD)
        if path in there
    }
    if _CONFIG in texts:
        try:
            kind = json.loads(texts[_CONFIG]).get("model_type")
        except (ValueError, AttributeError):
            kind = None
        if kind != "ldm":
            raise HubError(f"{name} holds a model of type {kind!r}, which ldm did not write: choose another --name")
    return texts


def _write_card(root: Path, card: Path | None, repository: str, known: Mapping[str, str], scratch: Path) -> Path:
    """The card as it is published, in a file: it loads the repository, and has its owner's notes at its end."""
    if card is None:
        config = load_config(root)
        text = training_card(root.as_posix(), config, Training(environments=config.get("environments") or ()))
    else:
        text = card.read_text(encoding="utf-8")
    text = loaded_as(text, repository).partition(NOTES_MARK)[0].rstrip()
    notes = known.get(CARD, "").partition(NOTES_MARK)[2]
    path = scratch / CARD
    path.write_text(f"{text}\n\n{NOTES_MARK}{notes}", encoding="utf-8")
    return path


def _plan(
    repository: str, sources: Mapping[str, Path], there: "dict[str, RepoFile]", known: Mapping[str, str]
) -> ModelChange:
    files = [LocalFile.of(path, name) for name, path in sources.items()]
    ours = {CARD} if NOTES_MARK in known.get(CARD, "") else set()
    replaced = [
        file.path for file in files if file.path in there and file.path not in ours and not file.is_among(there)
    ]
    stale = [path for path in there if _WEIGHTS.fullmatch(path) and path not in sources]
    return ModelChange(repository, files, replaced, stale)


def send(
    api: "HfApi",
    change: ModelChange,
    there: "dict[str, RepoFile]",
    head: str | None,
    progress: Callable[[str, int, int], None],
) -> None:
    """Make a change, as one commit on top of ``head``, and see that the Hub has it afterwards.

    Raises:
        HubError: another process published meanwhile, or the Hub holds something else than was sent.
    """
    name, kind, total = change.repository, change.kind, sum(file.bytes for file in change.files)
    missing = [file for file in change.files if not file.is_among(there)]
    progress(name, total - sum(file.bytes for file in missing), total)
    if missing or change.stale:
        if newest_commit(api, name, kind) != head:
            raise HubError(f"{name}: another process published to it meanwhile; the same command looks at it again")
        title = "Publish the model" if kind == "model" else "Publish the page"
        commit(api, name, kind, title, missing, change.stale, head)
        progress(name, total, total)
    found = remote_files(api, name, kind)
    wrong = [file.path for file in change.files if not file.is_among(found)]
    if wrong:
        raise HubError(f"{name}: the Hub holds other content than was sent of {', '.join(wrong[:3])}; publish again")


def _read_json(path: Path) -> dict[str, dict[str, str]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON") from error
