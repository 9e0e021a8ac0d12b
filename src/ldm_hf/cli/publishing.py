"""``ldm publish``: models, pages and datasets on the Hub."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm_hf.errors import ConfigError
from ldm_hf.utils.dependencies import require

if TYPE_CHECKING:
    from ldm_hf.hub.publishing import ModelChange

_DATASETS, _MODELS = "Datasets", "Models"


def publish(
    source: Annotated[
        Path,
        typer.Argument(
            help="Data folder that `ldm build` made, a folder of such folders, a model folder, or a page of `ldm export`."
        ),
    ],
    namespace: Annotated[str, typer.Option(help="User or organisation of the Hub.")],
    library: Annotated[
        list[str] | None, typer.Option(help="Slug; repeatable. Default: all.", rich_help_panel=_DATASETS)
    ] = None,
    delete: Annotated[
        bool,
        typer.Option("--delete", help="Delete runs from the Hub that SOURCE does not have.", rich_help_panel=_DATASETS),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Of the repository. Default: ldm-FOLDER.", rich_help_panel=_MODELS)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `ldm evaluate` wrote: its card, report and plots are published with the model.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    private: Annotated[bool, typer.Option(help="Make new repositories private.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Replace and delete on the Hub without asking.")] = False,
) -> None:
    """Publish a model, a page or datasets to the Hub; datasets are one repository per library: NAMESPACE/ldm-LIBRARY.

    What was published before stays; what would be replaced or deleted is listed first. Files that ldm did not write are
    never deleted. The token is that of `hf auth login`, or HF_TOKEN. Interrupted, the same command sends only what is
    missing.
    """
    require("`ldm publish`", "data")
    from ldm_hf.hub.spaces import PAGE

    if (source / "config.json").is_file():
        if library or delete:
            raise ConfigError(f"{source} is a model: --library and --delete are for data folders")
        _publish_model(source, namespace, name, report, private, yes)
    elif (source / PAGE).is_file():
        if library or delete or report:
            raise ConfigError(f"{source} is a page: --library, --delete and --report are for others")
        _publish_page(source, namespace, name, private, yes)
    else:
        if name or report:
            raise ConfigError(
                f"{source} is not a model folder (it has no config.json): --name and --report are for models"
            )
        _publish_datasets(source, namespace, library, delete, private, yes)


def _publish_model(
    folder: Path, namespace: str, name: str | None, report: Path | None, private: bool, yes: bool
) -> None:
    from ldm_hf.hub.publishing import publish_model
    from ldm_hf.utils.progress import progress_bar

    with progress_bar("publishing", 0, "B", unit_scale=True) as bar:
        agree, progress = _agreement(bar, yes), _shown_by(bar)
        made = publish_model(
            folder, namespace, name=name, report=report, private=private, agree=agree, progress=progress
        )
    typer.echo(made)


def _publish_page(folder: Path, namespace: str, name: str | None, private: bool, yes: bool) -> None:
    from ldm_hf.hub.spaces import publish_page
    from ldm_hf.utils.progress import progress_bar

    with progress_bar("publishing", 0, "B", unit_scale=True) as bar:
        agree, progress = _agreement(bar, yes), _shown_by(bar)
        made = publish_page(folder, namespace, name=name, private=private, agree=agree, progress=progress)
    typer.echo(f"hf://spaces/{made}")


def _agreement(bar: Any, yes: bool) -> "Callable[[ModelChange], None]":
    """What lists the files that would be replaced and deleted, and asks."""
    from ldm_hf.hub.publishing import refuse_replacing

    def agree(change: "ModelChange") -> None:
        bar.clear()
        for verb, paths in (("replaces", change.replaced), ("deletes", change.stale)):
            for path in paths:
                typer.echo(f"{verb} the file {change.repository}/{path}", err=True)
        if not _is_wanted(yes):
            refuse_replacing(change)

    return agree


def _publish_datasets(
    data: Path, namespace: str, library: Sequence[str] | None, delete: bool, private: bool, yes: bool
) -> None:
    from ldm_hf.dataset_builder.repository.publish import Change, refuse_losses
    from ldm_hf.dataset_builder.repository.publish import publish as run
    from ldm_hf.utils.progress import progress_bar

    def agree(changes: Sequence[Change]) -> None:
        bar.clear()
        for change in changes:
            for verb, places in (("replaces", change.merged.replaced), ("deletes", change.merged.deleted)):
                for place in places:
                    typer.echo(f"{verb} the run {change.repository}/{place}", err=True)
            for path in change.merged.stale:
                typer.echo(f"deletes the file {change.repository}/{path}", err=True)
        if not _is_wanted(yes):
            refuse_losses(changes)

    with progress_bar("publishing", 0, "B", unit_scale=True) as bar:
        names = run(
            data, namespace, libraries=library, private=private, delete=delete, agree=agree, progress=_shown_by(bar)
        )
    for name in names:
        typer.echo(f"hf://datasets/{name}")


def _is_wanted(yes: bool) -> bool:
    return yes or (sys.stdin.isatty() and typer.confirm("Shall that be done?", err=True))


def _shown_by(bar: Any) -> Callable[[str, int, int], None]:
    """What publishing tells, on a progress bar."""
    last: dict[str, int] = {}

    def progress(name: str, done: int, total: int) -> None:
        if name not in last:
            bar.total += total
        bar.set_description(f"publishing {name}", refresh=False)
        bar.update(done - last.get(name, 0))
        last[name] = done

    return progress
