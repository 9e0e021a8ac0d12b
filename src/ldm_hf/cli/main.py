"""The ``ldm`` command. Whatever it needs is imported when a command runs, so that ``--help`` answers at once."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

import ldm_hf
from ldm_hf.cli.bank import adopt, bank
from ldm_hf.cli.build import build
from ldm_hf.cli.data import check, convert
from ldm_hf.cli.demo import demo
from ldm_hf.cli.env import environments
from ldm_hf.cli.evaluation import coverage, evaluate, print_report, references, report, rollout, verify
from ldm_hf.cli.export import export
from ldm_hf.cli.finetuning import finetune
from ldm_hf.cli.gallery import gallery
from ldm_hf.cli.publishing import publish
from ldm_hf.cli.serve import serve
from ldm_hf.cli.solve import solve
from ldm_hf.cli.training import LAUNCH, average, launch, train
from ldm_hf.errors import LDMError
from ldm_hf.utils.dependencies import require
from ldm_hf.utils.processes import is_first_to_say


class _InOrder(typer.core.TyperGroup):
    """Lists commands in the order of work, groups of them among the others."""

    def list_commands(self, ctx: Any) -> list[str]:
        known = super().list_commands(ctx)
        return sorted(known, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


_ORDER = (
    *("quickstart", "solve", "env", "build", "adopt", "bank", "references", "check", "convert"),
    *(
        "train",
        "launch",
        "finetune",
        "average",
        "evaluate",
        "verify",
        "report",
        "coverage",
        "rollout",
        "demo",
        "serve",
        "export",
        "publish",
    ),
)

app = typer.Typer(
    cls=_InOrder,
    help="Large Decision Models: collect data from any Gymnasium environment, train one policy on it, judge it, use it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ldm_hf {ldm_hf.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Options of no command."""


app.command()(solve)
app.add_typer(environments, name="env")
app.command()(build)
app.command()(adopt)
app.add_typer(bank, name="bank")
app.command()(references)
app.command()(check)
app.command()(convert)
app.command()(train)
app.command(**LAUNCH)(launch)
app.command()(finetune)
app.command()(average)
app.command()(evaluate)
app.command()(verify)
app.command()(report)
app.command()(coverage)
app.command()(rollout)
app.command()(demo)
app.command()(serve)
app.command()(gallery)
app.command()(export)
app.command()(publish)


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/quickstart"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes and threads; by default as many as there are processors.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of everything.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the model.")] = 600,
) -> None:
    """Run `ldm build`, `ldm train` and `ldm evaluate` on four real environments, and say how.

    Interrupted, it resumes where it was when it is started again.
    """
    require("`ldm quickstart`", "build", "train", "evaluate")
    from ldm_hf.quickstart import quickstart as run

    try:
        made = run(output, jobs=jobs or len(os.sched_getaffinity(0)), seed=seed, steps=steps)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted: the same command resumes", err=True)
        raise typer.Exit(130) from None
    print_report(made)
    typer.echo(f"Datasets, model, report.html and report.json are in {output}/", err=True)


class _OnStderr(logging.Handler):
    """Shows the log as plain lines, on what is stderr when a line comes."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(self.format(record), err=True)


def _show_log() -> None:
    """Show what the package logs on stderr, from the level that transformers' variable names on."""
    level = logging.getLevelName(os.environ.get("TRANSFORMERS_VERBOSITY", "info").upper())
    logger = logging.getLogger("ldm_hf")
    if not any(isinstance(one, _OnStderr) for one in logger.handlers):
        logger.addHandler(_OnStderr())
    logger.setLevel(level if isinstance(level, int) else logging.INFO)


def run_command(command: Callable[..., Any]) -> None:
    """Run a command line; an error that its user can act on is one line and exit status 1."""
    _show_log()
    try:
        command()
    except LDMError as error:
        if is_first_to_say(str(error)):
            typer.echo(f"error: {error}", err=True)
        sys.exit(1)


def main() -> None:
    """Entry point of the ``ldm`` command."""
    run_command(app)
