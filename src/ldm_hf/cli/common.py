"""What several commands share: the option --output, executors, the table of runs."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm_hf.errors import ConfigError

if TYPE_CHECKING:
    from ldm_hf.executors.base import Executor

Output = Annotated[Path, typer.Option(help="Data folder: a dataset repository per library.")]


def make_executor(name: str, jobs: int | None, address: str, gpus: float, root: Path) -> "Executor":
    """The executor of a command's options; ``root`` is what all nodes of a cluster must see."""
    if name == "local":
        if gpus:
            raise ConfigError(f"--gpus {gpus:g} is a share of a GPU of a Ray cluster: add --executor ray")
        from ldm_hf.executors.local import LocalExecutor

        return LocalExecutor(jobs)
    if name == "ray":
        from ldm_hf.executors.ray import RayExecutor

        return RayExecutor(address, root, gpus)
    raise ConfigError(f"executor must be local or ray, got {name!r}")


def print_runs(output: Path, libraries: list[str]) -> None:
    """The table of all runs, kept and dropped."""
    from rich.console import Console
    from rich.table import Table

    from ldm_hf.dataset_builder.anchors.anchors import WORTH, worth
    from ldm_hf.dataset_builder.repository.repository import run_records

    table = Table(title="Runs", title_justify="left")
    texts = ("environment", "run", "solved", "")
    for column in ("environment", "run", "first 10 %", "last 10 %", "deterministic", *WORTH, ""):
        table.add_column(column, justify="left" if column in texts else "right")
    for library in libraries:
        for record in run_records(output / library):
            info = record.info
            values = () if info is None else (info.first10, info.last10, info.deterministic_return)
            scores = [f"{value:.2f}" for value in values] or [""] * 3
            anchors = None if info is None or info.assessment is None else info.assessment.anchors
            successes = () if info is None or info.assessment is None else info.assessment.successes
            value = None if info is None else info.deterministic_return
            beside = worth(record.environment, value, anchors, successes)
            flagged = "" if info is None or not info.flags else f"; degenerate: {'; '.join(info.flags)}"
            table.add_row(record.environment, record.run, *scores, *beside, (record.dropped or "kept") + flagged)
    (Console() if sys.stdout.isatty() else Console(width=180)).print(table)


def count(number: int, what: str) -> str:
    """A number of things, in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def on_cores(core_hours: float, cores: int | None, at_least: float = 0.0) -> str:
    """How long something takes on some cores, by default on those of this process; ``at_least`` hours on however many."""
    number = cores or len(os.sched_getaffinity(0))
    days = max(core_hours / number, at_least) / 24
    return f"On {count(number, 'core')}: " + (f"{days:,.1f} days" if days >= 2 else f"{days * 24 * 60:,.0f} minutes")
