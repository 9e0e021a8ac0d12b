"""The commands that make datasets: ``ldm build``, ``ldm check``, ``ldm publish``, ``ldm convert``."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm_hf.dependencies import require
from ldm_hf.errors import ConfigError, DatasetFormatError, UnknownEnvironmentError
from ldm_hf.files import sole_writer

if TYPE_CHECKING:
    from ldm_hf.dataset_builder.build.budgets import Budget
    from ldm_hf.dataset_builder.build.plan import Group, Plan
    from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget
    from ldm_hf.dataset_builder.reference.candidates import Candidate
    from ldm_hf.dataset_builder.repository.verification import RunCheck
    from ldm_hf.executors.base import Executor

_DATASETS, _MODELS = "Datasets", "Models"
Output = Annotated[Path, typer.Option(help="Data folder: a dataset repository per library.")]


def build(
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
) -> None:
    """Train reference policies on environments, record everything, relabel it, and write datasets.

    Candidates race on each environment: they train for a slice of time, the better half resumes for twice the time, until
    one is left or reaches the known good score. Runs that learned nothing are dropped. Killed or interrupted, the same
    command resumes where it was. With --budget paper, candidates are ranked on a few environments of each library, and the
    best three are trained on each.
    """
    require("`ldm build`", "build")
    if from_bank is not None:
        from ldm_hf.cli.bank import ROLLOUT_TRANSITIONS, build_from_bank

        build_from_bank(from_bank, targets, output, transitions or ROLLOUT_TRANSITIONS, jobs, seed)
        return
    if not targets:
        raise ConfigError("name environments or libraries to build, or a bank by --from-bank")
    from ldm_hf.dataset_builder.build.build import choose, open_build
    from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget
    from ldm_hf.dataset_builder.repository.repository import run_records
    from ldm_hf.processes import exit_with_owner

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


def _cost(plan: "Plan", settings: Any, jobs: int | None) -> str:
    """A line on what a build costs at most, before it starts."""
    from ldm_hf.dataset_builder.build.plan import estimate
    from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget

    number = sum(len(group.environments) for group in plan.groups)
    if isinstance(settings.budget, RaceBudget):
        hours = number * settings.budget.core_minutes / 60
        what = f"{_count(number, 'race')} of {settings.budget.core_minutes:g} core minutes"
    else:
        costs = estimate(plan, settings.pool, settings.budget)
        hours = costs.core_hours
        what = f"{_count(number, 'environment')}, {_count(costs.ranking_runs + costs.runs, 'run')}"
    return f"{what}: about {hours:,.1f} core hours at most. {_on_cores(hours, jobs)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _unfit(plan: "Plan", candidates: Sequence[str]) -> dict[str, str]:
    """Of the candidates that were asked for by name, why they are not trained on some of the environments."""
    environments = [environment for group in plan.groups for environment in group.environments]
    return {
        f"{name} on {environment.spec.id}": environment.incompatible[name]
        for name in candidates
        for environment in environments
        if name in environment.incompatible
    }


def make_executor(name: str, jobs: int | None, address: str, gpus: float, root: Path) -> "Executor":
    """The executor of a command's options; ``root`` is what all nodes of a cluster must see."""
    if name == "local":
        from ldm_hf.executors.local import LocalExecutor

        return LocalExecutor(jobs)
    if name == "ray":
        from ldm_hf.executors.ray import RayExecutor

        return RayExecutor(address, root, gpus)
    raise ConfigError(f"executor must be local or ray, got {name!r}")


def _run(building: Any, running: "Executor") -> None:
    from ldm_hf.dataset_builder.build.pipeline import run_build
    from ldm_hf.progress import progress_bar

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
        f"{_on_cores(costs.core_hours, cores)}, if they are like the one that the costs of steps were measured on."
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
        f"{_count(costs.environments, 'race')} of {budget.core_minutes:g} core minutes, {costs.slices} slices: "
        f"{costs.core_hours:,.1f} core hours, and at most {costs.anchor_hours:,.1f} for random and trivial policies where "
        f"they were not played yet.\n"
        f"Winners train for {middle(costs.least):,} (the slowest of the field) to {middle(costs.most):,} transitions (the "
        f"fastest), medians of the environments; {costs.bytes / 2**30:,.1f} GiB at most.\n"
        f"{_on_cores(costs.core_hours, cores)}; races that reach known good end sooner, and leave their time to others."
    )


def _print_environments(console: Any, group: "Group") -> None:
    console.print("environments: " + ", ".join(one.spec.id for one in group.environments) + "\n")


def _print_left_out(console: Any, plan: "Plan") -> None:
    for name, reason in plan.left_out.items():
        console.print(f"left out: {name}: {reason}")


def _on_cores(core_hours: float, cores: int | None) -> str:
    import os

    number = cores or len(os.sched_getaffinity(0))
    days = core_hours / number / 24
    return f"On {_count(number, 'core')}: " + (f"{days:,.1f} days" if days >= 2 else f"{days * 24 * 60:,.0f} minutes")


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


def publish(
    source: Annotated[
        Path,
        typer.Argument(help="Data folder that `ldm build` made, a folder of such folders, or a model folder."),
    ],
    namespace: Annotated[str, typer.Option(help="User or organisation of the Hub.")],
    library: Annotated[
        list[str] | None, typer.Option(help="Slug; repeatable. Default: all.", rich_help_panel=_DATASETS)
    ] = None,
    delete: Annotated[
        bool,
        typer.Option("--delete", help="Delete runs from the Hub that SOURCE does not have.", rich_help_panel=_DATASETS),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Of the repository. Default: ldm-FOLDER.", rich_help_panel=_MODELS)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `ldm evaluate` wrote: its card, report and plots are published with the model.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    private: Annotated[bool, typer.Option(help="Make new repositories private.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Replace and delete on the Hub without asking.")] = False,
) -> None:
    """Publish a model or datasets to the Hub; datasets are one repository per library: NAMESPACE/ldm-LIBRARY.

    What was published before stays; what would be replaced or deleted is listed first. Files that ldm did not write are
    never deleted. The token is that of `hf auth login`, or HF_TOKEN. Interrupted, the same command sends only what is
    missing.
    """
    require("`ldm publish`", "data")
    if (source / "config.json").is_file():
        if library or delete:
            raise ConfigError(f"{source} is a model: --library and --delete are for data folders")
        _publish_model(source, namespace, name, report, private, yes)
    else:
        if name or report:
            raise ConfigError(
                f"{source} is not a model folder (it has no config.json): --name and --report are for models"
            )
        _publish_datasets(source, namespace, library, delete, private, yes)


def _publish_model(
    folder: Path, namespace: str, name: str | None, report: Path | None, private: bool, yes: bool
) -> None:
    from ldm_hf.progress import progress_bar
    from ldm_hf.publishing import ModelChange, publish_model, refuse_replacing

    def agree(change: ModelChange) -> None:
        bar.clear()
        for verb, paths in (("replaces", change.replaced), ("deletes", change.stale)):
            for path in paths:
                typer.echo(f"{verb} the file {change.repository}/{path}", err=True)
        if not _is_wanted(yes):
            refuse_replacing(change)

    with progress_bar("publishing", 0, "B", unit_scale=True) as bar:
        repository = publish_model(
            folder, namespace, name=name, report=report, private=private, agree=agree, progress=_shown_by(bar)
        )
    typer.echo(repository)


def _publish_datasets(
    data: Path, namespace: str, library: Sequence[str] | None, delete: bool, private: bool, yes: bool
) -> None:
    from ldm_hf.dataset_builder.repository.publish import Change, refuse_losses
    from ldm_hf.dataset_builder.repository.publish import publish as run
    from ldm_hf.progress import progress_bar

    def agree(changes: Sequence[Change]) -> None:
        bar.clear()
        for change in changes:
            for verb, places in (("replaces", change.merged.replaced), ("deletes", change.merged.deleted)):
                for place in places:
                    typer.echo(f"{verb} the run {change.repository}/{place}", err=True)
            for path in change.merged.stale:
                typer.echo(f"deletes the file {change.repository}/{path}", err=True)
        if not _is_wanted(yes):
            refuse_losses(changes)

    with progress_bar("publishing", 0, "B", unit_scale=True) as bar:
        names = run(
            data, namespace, libraries=library, private=private, delete=delete, agree=agree, progress=_shown_by(bar)
        )
    for name in names:
        typer.echo(f"hf://datasets/{name}")


def _is_wanted(yes: bool) -> bool:
    return yes or (sys.stdin.isatty() and typer.confirm("Shall that be done?", err=True))


def _shown_by(bar: Any) -> Callable[[str, int, int], None]:
    """What publishing tells, on a progress bar."""
    last: dict[str, int] = {}

    def progress(name: str, done: int, total: int) -> None:
        if name not in last:
            bar.total += total
        bar.set_description(f"publishing {name}", refresh=False)
        bar.update(done - last.get(name, 0))
        last[name] = done

    return progress


def check(
    data: Annotated[
        str, typer.Argument(help="Data folder, one repository, or hf://datasets/<namespace>/<name>[@revision].")
    ],
    environment: Annotated[list[str] | None, typer.Option(help="Id; repeatable. Default: all.")] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Also step the recorded actions in the environments, and compare.")
    ] = False,
) -> None:
    """Check datasets: what manifests say, the SHA-256 of all files, every value of every row.

    Each defect is a line with file and row; exit status 1 if there is one. Observations outside the space that an
    environment declares are counted, and are not defects.
    """
    require("`ldm check`", "data")
    from ldm_hf.dataset_builder.format.storage import open_storages
    from ldm_hf.dataset_builder.repository.verification import check_repository
    from ldm_hf.progress import progress_bar

    runs = defects = 0
    with progress_bar("checking", 0, "row", unit_scale=True) as bar:
        for storage in open_storages(data):
            for found in check_repository(storage, environment, bar.update):
                lines, replayed = found.defects, ""
                if replay and found.dataset is not None and not lines:
                    lines, replayed = _replay(found, bar.update)
                runs, defects = runs + 1, defects + len(lines)
                bar.clear()
                for line in lines or [f"{found.name}: {found.rows:,} rows are right{_remarks(found)}{replayed}"]:
                    typer.echo(line)
    if not runs:
        raise UnknownEnvironmentError(f"{data} has no data of {', '.join(environment or ['any environment'])}")
    if defects:
        raise DatasetFormatError(f"{data} has {defects} defects in {runs} runs, which are listed above")


def _replay(found: "RunCheck", progress: Callable[[int], object]) -> tuple[list[str], str]:
    """What differs when a run is replayed, and a remark if nothing does."""
    from ldm_hf.dataset_builder.repository.replay import replay, why_not

    assert found.dataset is not None
    reason = why_not(found.dataset)
    if reason is not None:
        return [], f"; not replayed: {reason}"
    again = replay(found.dataset, progress)
    if not again.different:
        return [], "; replayed, the environment does the same"
    what = f"{again.different:,} of {again.rows:,} rows differ when they are replayed"
    return [f"{found.where}: {found.name}: {what}, the first at {again.first}"], ""


def _remarks(found: "RunCheck") -> str:
    if not found.outside:
        return ""
    return (
        f"; {found.outside:,} observations lie outside the space that the environment declares, "
        f"the first at {found.first_outside}"
    )


def convert(
    source: Annotated[str, typer.Argument(help="Minari id or folder; with --to, id of an environment.")],
    from_: Annotated[str | None, typer.Option("--from", help="minari: make a run of SOURCE under --output.")] = None,
    to: Annotated[str | None, typer.Option(help="minari: make the Minari dataset --name of SOURCE's best run.")] = None,
    output: Output = Path("runs/data"),
    environment: Annotated[str | None, typer.Option(help="With --from: id. Default: what the dataset names.")] = None,
    name: Annotated[str | None, typer.Option(help="With --to: id of the new dataset, such as cartpole/ppo-v0.")] = None,
    run: Annotated[str | None, typer.Option(help="With --to: name of the run. Default: the best.")] = None,
) -> None:
    """Convert datasets from Minari, and to it. Minari's own datasets are under MINARI_DATASETS_PATH."""
    require("`ldm convert`", "minari")
    from ldm_hf.dataset_builder.repository.minari_reading import from_minari
    from ldm_hf.dataset_builder.repository.minari_writing import to_minari
    from ldm_hf.progress import progress_bar

    if (from_, to) not in (("minari", None), (None, "minari")):
        raise ConfigError("one of --from minari and --to minari must be given")
    if to and name is None:
        raise ConfigError("--to minari needs --name, the id of the new dataset")
    with progress_bar("converting", 0, "episode") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if from_:
            with sole_writer(output.absolute()):
                record = from_minari(source, output, environment=environment, progress=progress)
            made = f"{record.environment}, run {record.run}, in {output}"
        else:
            assert name is not None
            made = str(to_minari(output, source, name, run=run, progress=progress))
    typer.echo(made)
