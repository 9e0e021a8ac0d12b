"""``python -m ldm_hf.experiments.m3dt.capacity``: when experts help, on tasks whose best policies are known.

Every cell that is finished is a file of the output folder; the command run again makes those that are missing.
"""

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm_hf.cli.main import run_command
from ldm_hf.experiments.figures import print_table
from ldm_hf.utils.dependencies import require
from ldm_hf.utils.processes import exit_with_owner

if TYPE_CHECKING:
    from ldm_hf.experiments.m3dt.capacity.cells import Cell
    from ldm_hf.experiments.m3dt.capacity.study import Study


def run(
    output: Annotated[Path, typer.Option(help="Folder for the cells.")] = Path("runs/capacity"),
    short: Annotated[bool, typer.Option("--short", help="A part that takes ten minutes on two cores.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, of one thread each.")] = 2,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Optimizer steps per task. Default: 100, or 25 with --short.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Only print what is there.")] = False,
) -> None:
    """Compare dense models, wide ones and experts on 10 to 160 tasks, by exact scores."""
    require("the study of experts", "train")
    from ldm_hf.experiments.m3dt.capacity.plan import full_plan, short_plan
    from ldm_hf.experiments.m3dt.capacity.study import Study
    from ldm_hf.experiments.m3dt.capacity.tables import by_tasks, families, read

    study = Study(output, steps or (25 if short else 100))
    chains = short_plan() if short else full_plan()
    if not show:
        study.begin()
        waiting = [chain for chain in chains if any(study.record(cell) is None for cell in chain)]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, _begin, (os.getpid(),)) as pool:
            for done in as_completed([pool.submit(_measure, study, chain) for chain in waiting]):
                done.result()
    records = read(output)
    for family in families(records):
        head, *rows = by_tasks(records, family)
        print_table(family, head, rows)


def _begin(owner: int) -> None:
    import torch

    exit_with_owner(owner)
    torch.set_num_threads(1)


def _measure(study: "Study", chain: Sequence["Cell"]) -> None:
    for cell in chain:
        if study.record(cell) is None:
            found = study.measure(cell)
            typer.echo(f"{time.strftime('%H:%M:%S')} {cell.name}: {found['score']:.1f}, {found['seconds']} s", err=True)


if __name__ == "__main__":
    single = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    single.command()(run)
    run_command(single)
