"""``python -m ldm_hf.experiments.m3dt.capacity``: when experts help, on tasks whose best policies are known.

Every cell that is finished is a file of the output folder; the command run again makes those that are missing.
"""

from pathlib import Path
from typing import Annotated

import typer

from ldm_hf.cli.main import run_command
from ldm_hf.experiments.figures import print_table
from ldm_hf.utils.dependencies import require


def run(
    output: Annotated[Path, typer.Option(help="Folder for the cells.")] = Path("runs/capacity"),
    short: Annotated[bool, typer.Option("--short", help="A part that takes seven minutes on two cores.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, of one thread each.")] = 2,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Optimizer steps per task. Default: 100, or 50 with --short.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Only print what is there.")] = False,
) -> None:
    """Compare dense models, wide ones and experts on 10 to 160 tasks, by exact scores."""
    require("the study of experts", "train")
    from ldm_hf.experiments.m3dt.capacity.plan import full_plan, short_plan
    from ldm_hf.experiments.m3dt.capacity.study import Study
    from ldm_hf.experiments.m3dt.capacity.tables import by_tasks, families, read
    from ldm_hf.experiments.m3dt.capacity.workers import measure_chains

    study = Study(output, steps or (50 if short else 100))
    chains = short_plan() if short else full_plan()
    if not show:
        study.begin()
        measure_chains(study, chains, jobs)
    records = read(output)
    for family in families(records):
        head, *rows = by_tasks(records, family)
        print_table(family, head, rows)


if __name__ == "__main__":
    single = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    single.command()(run)
    run_command(single)
