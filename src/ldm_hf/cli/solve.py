"""``ldm solve``: from an environment to a policy."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ldm_hf.utils.dependencies import require


def solve(
    target: Annotated[
        str,
        typer.Argument(
            metavar="ENVIRONMENT_OR_REQUIREMENT",
            help="Id of an environment, or what `ldm env add` takes, such as my_env.py:MyEnv.",
        ),
    ],
    hours: Annotated[float, typer.Option(help="Hours that it may take, roughly.")] = 1.0,
    output: Annotated[Path | None, typer.Option(help="Folder. Default: runs/solve/ENVIRONMENT.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Pretrained model to start from. Default: pretrained/ldm-mini, in a clone.")
    ] = None,
    push: Annotated[str | None, typer.Option(help="NAMESPACE/NAME: publish the model to the Hub.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per processor.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of everything.")] = 0,
) -> None:
    """Find a policy for an environment: a race for a reference, models trained on it, the best of them evaluated.

    A library that is not known is added first. A pretrained model is trained further, and one from random weights beside it,
    until neither plays better; the best has a card, a report and a video in OUTPUT/model. Interrupted, the same command
    resumes.
    """
    require("`ldm solve`", "build", "train", "evaluate")
    from rich.console import Console
    from rich.table import Table

    from ldm_hf.dataset_builder.curves import Sample
    from ldm_hf.policy_search import solve as run

    number = jobs or len(os.sched_getaffinity(0))
    typer.echo(f"about {hours:g} hours on {number} cores at most", err=True)
    try:
        found = run(
            target,
            output,
            hours=hours,
            model=model,
            jobs=number,
            seed=seed,
            push=push,
            say=lambda line: typer.echo(line, err=True),
        )
    except KeyboardInterrupt:
        typer.echo("\ninterrupted: the same command resumes", err=True)
        raise typer.Exit(130) from None
    table = Table(title=found.environment, title_justify="left")
    for column, justify in (("policy", "left"), ("mean return", "right"), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    if found.random is not None:
        table.add_row("random", f"{found.random:.2f}", "")
    if found.trivial is not None:
        table.add_row(f"trivial: {found.trivial[0]}", f"{found.trivial[1]:.2f}", "")
    table.add_row("reference", f"{Sample.of(found.reference).mean:.2f}", "better" if found.reference_is_better else "")
    for one in found.rounds:
        table.add_row(f"{one.model}, {one.steps} steps", f"{one.mean:.2f}", "")
    solved = {True: "solved", False: "not solved", None: ""}[found.solved]
    table.add_row(f"kept: {found.best}, on other seeds", f"{Sample.of(found.returns).mean:.2f}", solved)
    (Console() if sys.stdout.isatty() else Console(width=120)).print(table)
    typer.echo(f'The model is in {found.model}/: ldm_hf.load("{found.model}").play("{found.environment}")', err=True)
