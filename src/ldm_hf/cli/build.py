"""``ldm build``: reference policies and the datasets of their training."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm_hf.cli.bank import ROLLOUT_TRANSITIONS, Actor, make_rollouts, print_rollouts, rollouts_of_bank
from ldm_hf.cli.common import Output, count, make_executor, on_cores, print_runs
from ldm_hf.errors import ConfigError
from ldm_hf.utils.dependencies import require
from ldm_hf.utils.files import sole_writer

if TYPE_CHECKING:
    from ldm_hf.dataset_builder.build.budgets import Budget
    from ldm_hf.dataset_builder.build.plan import Group, Plan
    from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget
    from ldm_hf.dataset_builder.reference.candidates import Candidate
    from ldm_hf.executors.base import Executor


def build(
    context: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="Ids of environments, and libraries as a whole. With --from-bank, by default all of it."),
    ] = None,
    output: Output = Path("runs/data"),
    budget: Annotated[
        str, typer.Option(help="race: halving among candidates by time; paper; or small: the paper's, in minutes.")
    ] = "race",
    core_minutes: Annotated[
        float | None, typer.Option(help="Of a race: for each environment, of all its candidates. Default: 10.")
    ] = None,
    transitions: Annotated[
        int | None, typer.Option(min=1, help="Of a run. Default: the budget's, 3,000,000 of the paper.")
    ] = None,
    candidates: Annotated[list[str] | None, typer.Option(help="Name in the pool; repeatable. Default: all.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time. Default: one per processor.")] = None,
    executor: Annotated[str, typer.Option(help="local, or ray.")] = "local",
    address: Annotated[str, typer.Option(help="Address of the Ray cluster: host:6379, auto, or local.")] = "auto",
    gpus: Annotated[
        float, typer.Option(min=0, help="With ray: share of a GPU for a run on images, which trains there.")
    ] = 0.0,
    device: Annotated[str, typer.Option(help="Torch device that trains, of the local executor.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Random seed of each run.")] = 0,
    keep_unstable: Annotated[
        bool, typer.Option(help="Keep runs whose deterministic policy falls short of their training.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option(help="Make again the runs that failed.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, how long it takes and how large it is.")
    ] = False,
    cores: Annotated[int | None, typer.Option(min=1, help="With --dry-run: cores to say the time for.")] = None,
    from_bank: Annotated[
        Path | None,
        typer.Option(help="Train nothing: roll out the policies of this bank, --transitions (100,000) of each."),
    ] = None,
    actor: Actor = None,
) -> None:
    """Train reference policies on environments, record everything, relabel it, and write datasets.

    Candidates race on each environment: they train for a slice of time, the better half resumes for twice the time, until
    one is left or reaches the known good score. Runs that learned nothing are dropped. Killed or interrupted, the same
    command resumes where it was. With --budget paper, candidates are ranked on a few environments of each library, and the
    best three are trained on each.
    """
    require("`ldm build`", "build")
    if from_bank is not None:
        _refuse_what_trains(context)
        works = rollouts_of_bank(from_bank, targets, output, transitions or ROLLOUT_TRANSITIONS, seed, actor)
        if dry_run:
            print_rollouts(works, cores)
        else:
            make_rollouts(works, jobs, output.absolute())
        return
    if actor is not None:
        raise ConfigError(
            "--actor needs policies to label what the model sees: give a bank by --from-bank, or `ldm adopt`"
        )
    if not targets:
        raise ConfigError("name environments or libraries to build, or a bank by --from-bank")
    from ldm_hf.dataset_builder.build.build import choose, open_build
    from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget
    from ldm_hf.dataset_builder.repository.repository import run_records
    from ldm_hf.utils.processes import exit_with_owner

    keep = "improved" if keep_unstable else "fit"
    settings, plan = choose(
        targets, budget, core_minutes, transitions, candidates or (), seed, keep=keep, device=device
    )
    if dry_run:
        if isinstance(settings.budget, RaceBudget):
            _print_races(plan, settings.pool, settings.budget, cores)
        else:
            _print_plan(plan, settings.pool, settings.budget, cores)
        return
    for name, reason in {**plan.left_out, **_unfit(plan, candidates or ())}.items():
        typer.echo(f"left out: {name}: {reason}", err=True)
    exit_with_owner()
    with sole_writer(output.absolute()):
        building = open_build(plan, settings, output.absolute())
        if retry_failed:
            typer.echo(f"{building.forget_failures()} failed runs are made again", err=True)
        running = make_executor(executor, jobs, address, gpus, output.absolute())
        typer.echo(_cost(plan, settings, jobs), err=True)
        _run(building, running)
    print_runs(output, building.libraries)
    records = [record for library in building.libraries for record in run_records(output / library)]
    fit = {record.environment for record in records if record.dropped is None}
    names = [one.spec.id for group in plan.groups for one in group.environments]
    typer.echo(f"references of {len(fit)} of {len(names)} environments are in {output}/", err=True)
    if records and all(record.failed for record in records):
        typer.echo("every run failed, for the reasons above; --retry-failed makes them again", err=True)
        raise typer.Exit(1)


_OF_TRAINING = (
    *("budget", "core_minutes", "candidates", "executor", "address", "gpus", "device"),
    *("keep_unstable", "retry_failed"),
)


def _refuse_what_trains(context: typer.Context) -> None:
    """Raise ``ConfigError`` where options of training were given to what trains nothing."""
    given = [name for name in _OF_TRAINING if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f"--from-bank rolls out policies and trains nothing: leave out {names}")


def _cost(plan: "Plan", settings: Any, jobs: int | None) -> str:
    """A line on what a build costs at most, before it starts."""
    from ldm_hf.dataset_builder.build.plan import estimate
    from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget

    number = sum(len(group.environments) for group in plan.groups)
    at_least = 0.0
    if isinstance(settings.budget, RaceBudget):
        hours = number * settings.budget.core_minutes / 60
        at_least = settings.budget.least_seconds / 3600
        what = f"{count(number, 'race')} of {settings.budget.core_minutes:g} core minutes"
    else:
        costs = estimate(plan, settings.pool, settings.budget)
        hours = costs.core_hours
        what = f"{count(number, 'environment')}, {count(costs.ranking_runs + costs.runs, 'run')}"
    return f"{what}: about {hours:,.1f} core hours at most. {on_cores(hours, jobs, at_least)}"


def _unfit(plan: "Plan", candidates: Sequence[str]) -> dict[str, str]:
    """Of the candidates that were asked for by name, why they are not trained on some of the environments."""
    environments = [environment for group in plan.groups for environment in group.environments]
    return {
        f"{name} on {environment.spec.id}": environment.incompatible[name]
        for name in candidates
        for environment in environments
        if name in environment.incompatible
    }


def _run(building: Any, running: "Executor") -> None:
    from ldm_hf.dataset_builder.build.pipeline import run_build
    from ldm_hf.utils.progress import progress_bar

    total, done = building.amount()
    with progress_bar("building", total, building.unit, initial=done, unit_scale=True) as bar:
        under_way: dict[str, float] = {}
        before: dict[str, Any] = {}

        def watch(executor: Any, jobs: Any) -> None:
            nonlocal done, before
            for message in executor.messages():
                if message.stage == "training":
                    under_way[message.name] = message.done / max(1, message.total)
            running_now = {job.name: job for job in jobs}
            ended = [job for name, job in before.items() if name not in running_now and job.is_done]
            done += sum(job.amount for job in ended)
            if any(job.decides for job in ended):  # which may have decided what is trained
                bar.total, done = building.amount()
            for name in set(under_way) - set(running_now):
                del under_way[name]
            before = running_now
            bar.set_postfix_str(f"{len(running_now)} runs", refresh=False)
            bar.n = min(
                bar.total, done + round(sum(running_now[name].amount * part for name, part in under_way.items()))
            )
            bar.update(0)

        def say(line: str) -> None:
            bar.write(line, file=sys.stderr)

        try:
            run_build(building, running, say, watch)
            bar.n = bar.total
        except KeyboardInterrupt:
            typer.echo("\ninterrupted: the same command continues with the runs that are not finished", err=True)
            raise typer.Exit(130) from None
        finally:
            running.close()


def _print_plan(plan: "Plan", pool: "Mapping[str, Candidate]", budget: "Budget", cores: int | None) -> None:
    """Who is compatible with what, and what it costs."""
    from rich.console import Console
    from rich.table import Table

    from ldm_hf.dataset_builder.build.plan import estimate

    console = Console()
    for group in plan.groups:
        table = Table(title=f"{group.library}: {len(group.environments)} environments", title_justify="left")
        for column in ("candidate", "why not, or transitions of the ranking and of a run"):
            table.add_column(column)
        for name, candidate in pool.items():
            if name in group.candidates:
                ranking, run = budget.ranking_transitions(candidate), budget.run_transitions(candidate)
                table.add_row(name, f"{ranking:,} and {run:,}")
            else:
                table.add_row(f"[dim]{name}", f"[dim]{group.environments[0].incompatible[name]}")
        console.print(table)
        console.print("ranked on: " + ", ".join(group.ranked_on))
        _print_environments(console, group)
    _print_left_out(console, plan)
    costs = estimate(plan, pool, budget)
    console.print(
        f"{costs.ranking_runs} runs to rank and {costs.runs} to record: {costs.transitions:,} transitions, "
        f"{costs.core_hours:,.1f} core hours, {costs.ranking_share:.0%} of them to rank; "
        f"{costs.bytes / 2**30:,.1f} GiB if every run is kept.\n"
        f"{on_cores(costs.core_hours, cores)}, if they are like the one that the costs of steps were measured on."
    )


def _print_races(plan: "Plan", pool: "Mapping[str, Candidate]", budget: "RaceBudget", cores: int | None) -> None:
    """Who races on what, what it costs, and how long winners train."""
    from rich.console import Console
    from rich.table import Table

    from ldm_hf.dataset_builder.build.race.field import order
    from ldm_hf.dataset_builder.build.race.race import FIELD
    from ldm_hf.dataset_builder.build.race.race_plan import estimate_races, middle, winner_transitions

    console = Console()
    for group in plan.groups:
        first = group.environments[0]
        candidates = budget.pool(first.spec.id, pool)
        field = order(first.candidates, ())[:FIELD]
        table = Table(title=f"{group.library}: {len(group.environments)} environments", title_justify="left")
        for column in ("candidate", f"transitions if it wins on {first.spec.id}; or why it does not race"):
            table.add_column(column)
        for name in field:
            table.add_row(name, f"{winner_transitions(first.spec, candidates[name], len(field), budget):,}")
        for name in first.candidates:
            if name not in field:
                table.add_row(f"[dim]{name}", "[dim]only where it did well on other environments of the library")
        for name, reason in first.incompatible.items():
            table.add_row(f"[dim]{name}", f"[dim]{reason}")
        console.print(table)
        _print_environments(console, group)
    _print_left_out(console, plan)
    costs = estimate_races(plan, pool, budget)
    console.print(
        f"{count(costs.environments, 'race')} of {budget.core_minutes:g} core minutes, {costs.slices} slices: "
        f"{costs.core_hours:,.1f} core hours, and at most {costs.anchor_hours:,.1f} for random and trivial policies where "
        f"they were not played yet.\n"
        f"Winners train for {middle(costs.least):,} (the slowest of the field) to {middle(costs.most):,} transitions (the "
        f"fastest), medians of the environments; {costs.bytes / 2**30:,.1f} GiB at most.\n"
        f"{on_cores(costs.core_hours, cores, budget.least_seconds / 3600)}; races that reach known good end sooner, and "
        "leave their time to others."
    )


def _print_environments(console: Any, group: "Group") -> None:
    console.print("environments: " + ", ".join(one.spec.id for one in group.environments) + "\n")


def _print_left_out(console: Any, plan: "Plan") -> None:
    for name, reason in plan.left_out.items():
        console.print(f"left out: {name}: {reason}")
