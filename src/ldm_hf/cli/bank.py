"""The commands of policies that are there: ``ldm adopt`` and ``ldm bank``."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm_hf.cli.common import Output, count, make_executor, on_cores, print_runs
from ldm_hf.errors import EnvironmentFailure
from ldm_hf.utils.dependencies import require
from ldm_hf.utils.files import sole_writer

if TYPE_CHECKING:
    from ldm_hf.dataset_builder.bank.rollout_jobs import RolloutJob
    from ldm_hf.dataset_builder.format.records import RunRecord

bank = typer.Typer(help="The bank: policies that are kept, from which data are made again.", no_args_is_help=True)

ROLLOUT_TRANSITIONS = 100_000

Noise = Annotated[
    list[float] | None,
    typer.Option(
        help="Noise of a stream, 0 to 1: share of random actions, or of half the range of real ones; repeatable. "
        "Default: 8 streams of 0, 4 of 0.1, 2 of 0.3, 2 of 1; with --actor 16 of 0."
    ),
]
Actor = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Folder or Hub name of a model that acts, while the policy says what it would do (DAgger).",
    ),
]
Transitions = Annotated[int, typer.Option(min=1, help="Of each environment.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Environments at a time. Default: one per processor.")]
Seed = Annotated[int, typer.Option(min=0, help="Of environments and noise.")]
Bank = Annotated[Path, typer.Option("--to", help="Folder of the bank.")]


def adopt(
    target: Annotated[
        str, typer.Argument(metavar="ENVIRONMENT", help="Id of an environment, or a library as a whole.")
    ],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A policy: folder of a run or of its policy, SB3 zip, safetensors file of an MLP with a JSON file beside "
            "it, FILE.py:function or module:function (experts:babyai and experts:metaworld are the libraries' own).",
        ),
    ],
    output: Output = Path("runs/data"),
    transitions: Transitions = ROLLOUT_TRANSITIONS,
    noise: Noise = None,
    normalizer: Annotated[
        Path | None, typer.Option(help="Of an SB3 zip: what VecNormalize.save made. It is not unpickled.")
    ] = None,
    actor: Actor = None,
    run: Annotated[str | None, typer.Option(help="Name of the run. Default: SOURCE-rollouts-SEED.")] = None,
    keep_all: Annotated[
        bool, typer.Option(help="Keep the data of a policy that is no better than a random one.")
    ] = False,
    seed: Seed = 0,
    jobs: Jobs = None,
) -> None:
    """Make data from a policy that is there: roll it out with and without noise, label, record and curate as any reference.

    Functions run beside the environment, in the isolated installation of its library. Killed or interrupted, the same
    command continues with the environments that are not finished.
    """
    require("`ldm adopt`", "build")
    from ldm_hf.dataset_builder.bank.rollout_jobs import RolloutJob
    from ldm_hf.dataset_builder.bank.rollout_request import RolloutRequest
    from ldm_hf.env_registry.library.manifest import load_manifests
    from ldm_hf.env_registry.registry import list_environments, spec

    known = list_environments(target) if target in load_manifests() else [spec(target)]
    statistics, keep = None if normalizer is None else str(normalizer), "all" if keep_all else "fit"
    levels, root = tuple(noise or ()), output.absolute()
    requests = [
        RolloutRequest(one.id, source, transitions, seed, levels, keep, statistics, run or "", actor)
        for one in known
        if not one.problems
    ]
    if not requests:
        raise EnvironmentFailure(f"{target} has no environment that fits a model")
    records = make_rollouts([RolloutJob(request, root) for request in requests], jobs, root)
    if all(record.failed for record in records):
        raise EnvironmentFailure(str(records[0].dropped))


def make_rollouts(works: "Sequence[RolloutJob]", jobs: int | None, root: Path) -> "list[RunRecord]":
    """Make rollouts in processes of this machine, with a bar on a terminal, and print the table of the runs."""
    from ldm_hf.dataset_builder.bank.rollout_jobs import run_rollouts
    from ldm_hf.env_registry.ids import EnvironmentId
    from ldm_hf.utils.progress import progress_bar

    total = sum(work.request.timesteps for work in works)
    with sole_writer(root), progress_bar("rolling out", total, "transition", unit_scale=True) as bar:
        executor: Any = make_executor("local", min(jobs or len(os.sched_getaffinity(0)), len(works)), "", 0.0, root)
        recorded = {work.name: work.request.timesteps for work in works if work.is_done}

        def watch(running: Any, now: Sequence[Any]) -> None:
            recorded.update({m.name: m.done for m in running.messages() if m.stage == "recording"})
            bar.n = min(total, sum(recorded.values()))
            bar.update(0)

        try:
            records = run_rollouts(works, executor, root, lambda line: bar.write(line, file=sys.stderr), watch)
            bar.n = total
        except KeyboardInterrupt:
            typer.echo("\ninterrupted: the same command resumes with what is not finished", err=True)
            raise typer.Exit(130) from None
        finally:
            executor.close()
    print_runs(root, list(dict.fromkeys(EnvironmentId.parse(work.request.environment).library for work in works)))
    return records


def rollouts_of_bank(
    folder: Path, targets: Sequence[str] | None, output: Path, transitions: int, seed: int, actor: str | None
) -> "list[RolloutJob]":
    """What makes data again from the policies of a bank, for ``make_rollouts`` and ``print_rollouts``."""
    from ldm_hf.dataset_builder.bank.bank import requests
    from ldm_hf.dataset_builder.bank.rollout_jobs import RolloutJob

    wanted = requests(folder, targets, transitions, seed, actor=actor)
    return [RolloutJob(request, output.absolute()) for request in wanted]


def print_rollouts(works: "Sequence[RolloutJob]", cores: int | None) -> None:
    """Say what ``make_rollouts`` would do, how long it takes and how large it is."""
    from ldm_hf.dataset_builder.build.costs import rollout_seconds, run_bytes
    from ldm_hf.env_registry.registry import spec

    left = [work.request for work in works if not work.is_done]
    specs = [spec(request.environment) for request in left]
    for request in left:
        typer.echo(f"{request.environment}: {request.run}, {request.timesteps:,} transitions")
    pairs = [(one, request.timesteps) for one, request in zip(specs, left, strict=True)]
    hours = sum(rollout_seconds(*pair) for pair in pairs) / 3600
    size = sum(run_bytes(*pair) for pair in pairs) / 2**30
    acting = " and what the model takes" if any(request.actor for request in left) else ""
    typer.echo(
        f"{count(len(left), 'environment')}, {len(works) - len(left)} more are done: "
        f"{sum(request.timesteps for request in left):,} transitions, {size:,.1f} GiB; at most {hours:,.1f} core "
        f"hours{acting}, by the speeds that `ldm env check` measured. {on_cores(hours, cores)}"
    )


@bank.command()
def add(
    runs: Annotated[
        Path, typer.Argument(help="Data folder of `ldm build` or `ldm adopt`, or a folder of such folders.")
    ],
    to: Bank = Path("bank"),
) -> None:
    """Take the best kept run of each environment into the bank, where it is better than what is there.

    It is played again first. Weights that do not act are left out, and the others rounded to 16 bits where the policy then
    acts the same. Policies that are no better than a random or a trivial one are not taken.
    """
    require("`ldm bank add`", "build")
    from ldm_hf.dataset_builder.bank.bank import add_all

    with sole_writer(to.absolute()):
        taken = add_all(runs, to.absolute(), typer.echo)
    typer.echo(f"{taken} policies were taken into {to}", err=True)


@bank.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="[BANK]", help="Folder of the bank.")] = Path("bank"),
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
) -> None:
    """Show the table of the bank: what its policies return, beside random and trivial policies and what is known as good."""
    require("`ldm bank show`", "data")
    from rich.console import Console
    from rich.table import Table

    from ldm_hf.dataset_builder.bank.bank import COLUMNS, read_bank, rows, summary

    entries = read_bank(folder)
    if markdown:
        lines = [COLUMNS, ["---", "---", *["---:"] * 6, "---", "---", "---:"], *rows(entries)]
        typer.echo("\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{summary(entries)}")
        return
    table = Table(*COLUMNS)
    for row in rows(entries):
        table.add_row(*row)
    (Console() if sys.stdout.isatty() else Console(width=180)).print(table)
    typer.echo(summary(entries), err=True)


@bank.command()
def judge(
    environments: Annotated[
        list[str] | None, typer.Argument(metavar="[ENVIRONMENTS]...", help="Ids, or slugs of libraries. Default: all.")
    ] = None,
    to: Annotated[Path, typer.Option("--bank", help="Folder of the bank.")] = Path("bank"),
) -> None:
    """Judge the bank's policies again beside random and trivial ones, after an update of a library or of this package.

    Random and trivial policies are played where that was not done with this installation; the bank's own are not. Says whose
    flags are others than before.
    """
    require("`ldm bank judge`", "build")
    from ldm_hf.dataset_builder.bank import bank as policies

    with sole_writer(to.absolute()):
        flagged = policies.judge(to.absolute(), environments, typer.echo)
    typer.echo(f"{flagged} of the policies of {to} have a flag", err=True)
