"""Publishes a page on which a model acts as a Space of the Hub."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from ldm_hf.errors import ConfigError
from ldm_hf.hub.client import LocalFile, check_account, hub_failures, newest_commit, remote_files
from ldm_hf.hub.publishing import PREFIX, ModelChange, refuse_replacing, send

PAGE = "page.json"
"""A folder that has it is a page of ``ldm export --page`` or ``ldm demo --space``; it names the kind of Space as ``sdk``."""

_OURS = re.compile(r"(model|references|ort)/.+")
"""Files that a page leaves behind in the Space when a newer one does not have them."""


def publish_page(
    folder: str | Path,
    namespace: str,
    *,
    name: str | None = None,
    private: bool = False,
    agree: Callable[[ModelChange], None] = refuse_replacing,
    progress: Callable[[str, int, int], None] = lambda repository, done, total: None,
) -> str:
    """Bring a page to the Hub, as the Space ``<namespace>/<name>``: all files of its folder, in one commit.

    Args:
        folder: what ``ldm export --page`` (a static Space) or ``ldm demo --space`` (one of Gradio) wrote.
        namespace: user or organisation.
        name: of the Space; by default ``ldm-`` and the name of the folder.
        private: whether a Space that is made is private; one that is there stays as it is.
        agree: asked before files of the Hub are replaced or deleted.
        progress: told the Space, the bytes that are there, and the bytes that there will be.

    Returns:
        Name of the Space.

    Raises:
        ConfigError: the folder is not a page; or files of the Hub would be replaced, and ``agree`` was not given.
        HubError: the Hub refuses, cannot be reached, or holds something else afterwards.
    """
    from huggingface_hub import HfApi

    root = Path(folder)
    if not (root / PAGE).is_file():
        raise ConfigError(
            f"{root} is not a page: it has no {PAGE}, which `ldm export --page` and `ldm demo --space` write"
        )
    sdk = json.loads((root / PAGE).read_text(encoding="utf-8")).get("sdk", "static")
    sources = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    own = root.resolve().name
    space = f"{namespace}/{name or (own if own.startswith(PREFIX) else PREFIX + own)}"
    api = HfApi()
    check_account(api, namespace)
    with hub_failures(space):
        head = newest_commit(api, space, "space")
        there = {} if head is None else remote_files(api, space, "space", head)
        files = [LocalFile.of(path, path.relative_to(root).as_posix()) for path in sources]
        paths = {file.path for file in files}
        replaced = [file.path for file in files if file.path in there and not file.is_among(there)]
        stale = [path for path in there if _OURS.fullmatch(path) and path not in paths]
        change = ModelChange(space, files, replaced, stale, "space")
        if replaced or stale:
            agree(change)
        if head is None:
            api.create_repo(space, repo_type="space", space_sdk=sdk, private=private, exist_ok=True)
            head, there = newest_commit(api, space, "space"), remote_files(api, space, "space")
        send(api, change, there, head, progress)
    return space
