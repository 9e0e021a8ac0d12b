"""``ldm export``: models outside Python."""

from pathlib import Path
from typing import Annotated

import typer

from ldm_hf.errors import ConfigError
from ldm_hf.utils.dependencies import require


def export(
    model: Annotated[str, typer.Argument(help="Model folder, or the name of a model of the Hub.")],
    output: Annotated[Path, typer.Option(help="Folder to write; an earlier export there is replaced.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="The graphs of a step, with a runner in JavaScript.")] = False,
    page: Annotated[
        bool, typer.Option("--page", help="A static page on which the model acts: a Space that `ldm publish` takes.")
    ] = False,
    int8: Annotated[bool, typer.Option(help="Store weights as 8-bit integers, a quarter of the size.")] = True,
    references: Annotated[
        list[Path] | None,
        typer.Option(help="Bank or data folder whose policies are the page's ghosts; repeatable."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the page. Default: the model's name.")] = None,
) -> None:
    """Write a model for browsers: one step of its policy as ONNX, alone (--onnx) or on a page (--page).

    The export acts beside the model for 300 steps and is refused if a logit differs by more than 1e-4. onnxruntime-web is
    fetched from the npm registry once and kept in $LDM_HOME; a page asks no other host for anything.
    """
    if onnx == page:
        raise ConfigError(
            "say what to write: --onnx (the graphs and a runner) or --page (a page on which the model acts)"
        )
    if onnx and (references or title):
        raise ConfigError("--references and --title are for --page")
    require("`ldm export`", "export", *(["build"] if references else []))
    from ldm_hf.export.page import export as run

    difference = run(model, output, page=page, int8=int8, references=references or (), title=title)
    typer.echo(f"{output}: differs from the model by at most {difference:.1e} in a logit, over 300 steps", err=True)
    typer.echo(output)
