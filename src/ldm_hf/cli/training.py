"""The commands that make weights: ``ldm train``, ``ldm launch`` and ``ldm average``."""

import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm_hf.cli.settings import with_settings
from ldm_hf.utils.dependencies import require

LAUNCH: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    "add_help_option": False,
}
"""How ``launch`` is registered: its options are those of ``accelerate launch``."""


@with_settings()
def train(
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; options win over it.")] = None,
    *,
    settings: dict[str, Any],
) -> None:
    """Train a model on datasets, continuing from the newest checkpoint. `ldm launch` does on several processes."""
    require("`ldm train`", "train")
    from ldm_hf.training.config import TrainingConfig
    from ldm_hf.training.preflight import check_machine
    from ldm_hf.utils.processes import exit_with_owner

    exit_with_owner()
    loaded = TrainingConfig.load(config, settings)
    check_machine(loaded)  # before the seconds that torch takes to be imported
    from ldm_hf.training.loop import train as run

    folder = run(loaded)
    if folder is None:
        raise typer.Exit(128 + signal.SIGTERM)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"The model is in {folder}/", err=True)


def launch(context: typer.Context) -> None:
    """Train on several devices: `accelerate launch` with all its options; what fails ends in one line and its status.

    For example: ldm launch --num_processes 8 --multi_gpu -m ldm_hf train --config FILE
    """
    require("`ldm launch`", "train")
    from ldm_hf.training.launch import launch as run

    raise typer.Exit(run(context.args))


def average(
    models: Annotated[
        list[str], typer.Argument(help="Model folders, or names on the Hub; two or more.", metavar="MODEL")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the average; a model there is replaced.")],
    share: Annotated[
        list[float] | None,
        typer.Option(help="Of each model, in their order; repeatable. Default: alike.", show_default=False),
    ] = None,
    save_precision: Annotated[
        str,
        typer.Option(
            "--save_precision", "--save-precision", help="fp32, or fp16 for numbers in half precision in the file."
        ),
    ] = "fp32",
) -> None:
    """Average the weights of models that were trained from the same ones, such as a model and a fine-tuned one.

    The average can be better than each; docs/learning.md has an example. Of models that were trained apart it is worthless.
    """
    require("`ldm average`", "train")
    from ldm_hf.training.averaging import average_models

    typer.echo(f"The model is in {average_models(models, output, share, save_precision)}/", err=True)
