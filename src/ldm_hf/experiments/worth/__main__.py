"""``python -m ldm_hf.experiments.worth``: learn held-out environments from a few episodes, with and without pretraining.

A cell (environment, number of episodes, seed, way to learn) is a file in the output folder; the command run again makes
those that are missing.
"""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm_hf.cli.main import run_command
from ldm_hf.experiments.worth.tasks import held_out
from ldm_hf.utils.dependencies import require
from ldm_hf.utils.files import replacing


def run(
    data: Annotated[Path, typer.Option(help="Folder of datasets of the references.")],
    model: Annotated[str, typer.Option(help="Folder or Hub name of the pretrained model.")] = "pretrained/ldm-base",
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/worth"),
    environment: Annotated[
        list[str] | None, typer.Option(help="Id; repeatable. Default: those held out for this model.")
    ] = None,
    episodes: Annotated[list[int] | None, typer.Option(help="Repeatable. Default: 1, 5 and 20.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each cell.")] = 3,
    way: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: all, and zero-shot.")] = None,
    setting: Annotated[str, typer.Option(help="Settings of fine-tuning that differ, as JSON.")] = "{}",
) -> None:
    """Measure what pretraining is worth: every way to learn from the same episodes, on the same evaluation episodes."""
    require("the benchmark of worth", "build", "train", "lora")
    from ldm_hf.evaluation.protocol import Protocol
    from ldm_hf.experiments.worth.ways import AVERAGED, PRETRAINED, SB3_TIME, WAYS, ZERO_SHOT, Bench, Cell

    environments = environment or held_out(model)
    cells = [
        Cell(name, count, seed, one)
        for count in episodes or (1, 5, 20)
        for seed in range(seeds)
        for name in environments
        for one in way or WAYS
    ]
    if way is None:
        cells = [Cell(name, 0, 0, ZERO_SHOT) for name in environments] + cells
    with contextlib.closing(Bench(model, data, output, Protocol(), json.loads(setting))) as bench:
        for number, cell in enumerate(cells, start=1):
            path = _path(output, cell)
            if path.is_file():
                continue
            beside = _path(output, replace(cell, way=PRETRAINED))
            tuned = 0.0
            if cell.way == SB3_TIME or (cell.way == AVERAGED and beside.is_file()):
                tuned = json.loads(beside.read_text(encoding="utf-8"))["seconds"]
            found = bench.measure(cell, tuned)
            if cell.way == AVERAGED:
                found["seconds"] = max(found["seconds"], tuned)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(found) + "\n", encoding="utf-8")
            returns = [value for rollout in found["returns"] for value in rollout]
            mean = sum(returns) / len(returns)
            typer.echo(f"{number}/{len(cells)} {cell.name}: {mean:.4g}, {found['seconds']:g} s", err=True)


def _path(output: Path, cell: Any) -> Path:
    return output / "cells" / f"{cell.name}.json"


if __name__ == "__main__":
    single = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    single.command()(run)
    run_command(single)
