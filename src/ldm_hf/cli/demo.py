"""``ldm demo``: a page on which a model is watched and compared."""

from pathlib import Path
from typing import Annotated

import typer

from ldm_hf.utils.dependencies import require


def demo(
    model: Annotated[str, typer.Argument(help="Model folder, or the name of a model of the Hub.")],
    references: Annotated[
        list[Path] | None, typer.Option(help="Bank or data folder whose policies can be watched; repeatable.")
    ] = None,
    environment: Annotated[
        list[str] | None,
        typer.Option(
            help="Id to offer; repeatable. Default: all that are installed, fit the model and can be rendered."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port. Default: the first free one from 7860 on.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = False,
    space: Annotated[
        Path | None,
        typer.Option(help="Write the page as a Gradio Space to this folder, for `ldm publish`, instead of serving it."),
    ] = None,
) -> None:
    """Serve a page on which a model plays in every installed environment, beside its references and a random policy.

    Choose an environment and who plays, watch it live and as a video, keep or clear the model's context, and compare all
    players on the same seeds.
    """
    require("`ldm demo`", "demo", *(["build"] if references else []))
    from ldm_hf.demo.app import app, show
    from ldm_hf.demo.stage import Stage
    from ldm_hf.hub.model_card import base_model_name

    roots = references or []
    stage, name = Stage(model, roots, environment or []), base_model_name(model)
    if space is not None:
        from ldm_hf.demo.space import write_space

        write_space(stage, name, model, roots, space)
        typer.echo(space)
        return
    show(app(stage, name), host, port, browser=browser, say=lambda address: typer.echo(address, err=True))
