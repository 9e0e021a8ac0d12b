"""The ``ldm`` command. Whatever it needs is imported when a command runs, so that ``--help`` answers at once."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm_hf.cli.bank import adopt, bank
from ldm_hf.cli.data import build, check, convert, publish
from ldm_hf.cli.env import environments
from ldm_hf.cli.evaluation import evaluate, print_report, references, report, rollout
from ldm_hf.cli.finetuning import finetune
from ldm_hf.dependencies import require
from ldm_hf.errors import ConfigError, InvalidValueError, LDMError, UnsupportedSpaceError
from ldm_hf.processes import is_first_to_say

app = typer.Typer(
    help="Large Decision Models: collect data from any Gymnasium environment, train one policy on it, judge it, use it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(environments, name="env")
app.add_typer(bank, name="bank")
app.command()(build)
app.command()(adopt)
app.command()(check)
app.command()(publish)
app.command()(convert)
app.command()(references)
app.command()(finetune)
app.command()(evaluate)
app.command()(rollout)
app.command()(report)

Output = Annotated[Path, typer.Option(help="Folder for the results.")]


@app.command()
def quickstart(
    output: Output = Path("runs/quickstart"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes and threads; by default as many as there are processors.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the model.")] = 600,
) -> None:
    """Do the whole job on real environments: train references, record them, train a model, load it, evaluate it.

    Interrupted, it resumes from the last finished step when it is started again.
    """
    require("`ldm quickstart`", "build", "train", "evaluate")
    from ldm_hf.quickstart import quickstart as run

    try:
        made = run(output, jobs=jobs or len(os.sched_getaffinity(0)), seed=seed, steps=steps)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted: the same command resumes from the last finished step", err=True)
        raise typer.Exit(130) from None
    print_report(made)
    typer.echo(f"Datasets, model, model card, curve and report.json are in {output}/", err=True)


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(help="YAML file of settings, see TrainingConfig.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="name=value, over the file; repeatable.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="backbone (all of a model), experts or routers; default: the setting.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Stage experts: how many at a time. Default: one per processor, or one GPU."),
    ] = None,
    executor: Annotated[str, typer.Option(help="Stage experts: local, or ray.")] = "local",
    address: Annotated[str, typer.Option(help="Address of the Ray cluster: host:6379, auto, or local.")] = "auto",
    gpus: Annotated[float, typer.Option(min=0, help="With ray: share of a GPU for each expert.")] = 0.0,
) -> None:
    """Train a model on datasets, continuing from the newest checkpoint. `ldm launch` does on several processes."""
    require("`ldm train`", "train")
    from ldm_hf.processes import exit_with_owner
    from ldm_hf.training.config import TrainingConfig
    from ldm_hf.training.preflight import check_machine

    exit_with_owner()
    loaded = TrainingConfig.load(config, [*(settings or []), *([f"stage={stage}"] if stage else [])])
    check_machine(loaded)  # before the seconds that torch takes to be imported
    folder: Path | None
    if loaded.stage == "experts":
        folder = _train_experts(loaded, jobs, executor, address, gpus)
    else:
        from ldm_hf.training.loop import train as run

        folder = run(loaded)
    if folder is None:
        raise typer.Exit(128 + signal.SIGTERM)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"The model is in {folder}/", err=True)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def launch(context: typer.Context) -> None:
    """Train on several devices: `accelerate launch` with all its options; what fails ends in one line and its status.

    For example: ldm launch --num_processes 8 --multi_gpu -m ldm_hf.training --config FILE
    """
    require("`ldm launch`", "train")
    from ldm_hf.training.launch import launch as run

    raise typer.Exit(run(context.args))


def _train_experts(config: Any, jobs: int | None, executor: str, address: str, gpus: float) -> Path | None:
    import torch

    from ldm_hf.cli.data import make_executor
    from ldm_hf.training.experts import train_experts

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("stage experts starts its own processes: run it by `ldm train`, not by `accelerate launch`")
    at_once = jobs or (1 if torch.cuda.is_available() else len(os.sched_getaffinity(0)))
    root = Path(config.output).absolute()
    try:
        folder = train_experts(
            config, lambda waiting: make_executor(executor, min(at_once, waiting), address, gpus, root)
        )
    except KeyboardInterrupt:
        typer.echo("\ninterrupted: the same command continues with the experts that are not finished", err=True)
        raise typer.Exit(130) from None
    if folder is None:
        typer.echo("SIGTERM: stopped after a checkpoint of every expert; started again, it continues", err=True)
    return folder


def run_command(command: Callable[..., Any]) -> None:
    """Run a command line; an error that its user can act on is one line and exit status 1."""
    try:
        command()
    except (LDMError, UnsupportedSpaceError, InvalidValueError) as error:
        if is_first_to_say(str(error)):
            typer.echo(f"error: {error}", err=True)
        sys.exit(1)


def main() -> None:
    """Entry point of the ``ldm`` command."""
    run_command(app)
