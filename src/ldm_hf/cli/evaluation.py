"""The commands that judge a model and show it: ``ldm evaluate``, ``ldm report`` and ``ldm rollout``."""

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm_hf.errors import ConfigError
from ldm_hf.utils.dependencies import require

if TYPE_CHECKING:
    from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
    from ldm_hf.evaluation.report import Report
    from ldm_hf.evaluation.results import EnvironmentResult

Device = Annotated[str, typer.Option(help="Torch device of the model.")]


def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, as save_pretrained writes it, or name on the Hub.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of datasets, or hf://datasets/..., which hold the scores of the reference runs; repeatable. "
            "Default: those of report.json in the model's folder, or what the model was trained on."
        ),
    ] = None,
    environments: Annotated[
        list[str] | None,
        typer.Option(
            "--environments",
            "--environment",
            help="all, ids, or libraries as a whole; repeatable. Default: all that have data.",
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of a rollout.")] = 10,
    rollouts: Annotated[int, typer.Option(min=1, help="Rollouts of an environment.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the environments.")] = 0,
    device: Device = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="Rollouts that the model acts in at a time.")] = 32,
    step_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a step of an isolated environment has failed.")
    ] = 60.0,
    videos: Annotated[int, typer.Option(min=0, help="Environments to record, from the best score to the worst.")] = 0,
    cleared: Annotated[
        bool,
        typer.Option("--cleared", help="Play as many episodes again with an empty context: what a context is worth."),
    ] = False,
    asynchronous: Annotated[
        bool,
        typer.Option(
            "--asynchronous",
            help="Let each environment act as soon as it is ready, instead of in batches that wait for their slowest.",
        ),
    ] = False,
) -> None:
    """Score a model by the paper's protocol; writes report.json, tables, images, report.html and a model card.

    Interrupted, it resumes from the last finished environment when it is started again; what failed is tried again.
    """
    require("`ldm evaluate`", "evaluate")
    from ldm_hf.dataset_builder.format.reader import open_datasets
    from ldm_hf.evaluation.batches import chosen
    from ldm_hf.evaluation.lineage import REPORT, published_references, training_data
    from ldm_hf.hub.pretrained import model_folder
    from ldm_hf.utils.processes import exit_with_owner
    from ldm_hf.utils.progress import progress_bar

    exit_with_owner()
    folder = model_folder(model)
    from_report = not data and (folder / REPORT).is_file()
    names = environments or ["all"]
    references: Sequence[EnvironmentDataset] | Sequence[EnvironmentResult]
    if from_report:
        references = chosen(published_references(folder), names)
    else:
        references = chosen(open_datasets(data or training_data(folder)), names)
    # These import torch: only when there is something to evaluate.
    from ldm_hf.evaluation.evaluate import evaluate as run
    from ldm_hf.evaluation.protocol import Protocol

    protocol = Protocol(episodes, rollouts, seed, step_timeout)
    with progress_bar("evaluating", len(references) * episodes * rollouts, "episode") as bar:
        ended: dict[str, int] = {}

        def progress(environment: str, done: int) -> None:
            bar.set_description(f"evaluating {environment}", refresh=False)
            bar.update(done - ended.get(environment, 0))
            ended[environment] = done

        try:
            made = run(
                folder,
                references,
                output,
                protocol,
                device=device,
                batch_rows=batch_size,
                videos=videos,
                cleared=cleared,
                asynchronous=asynchronous,
                progress=progress,
            )
        except KeyboardInterrupt:
            typer.echo("\ninterrupted: the same command continues after the environments that are finished", err=True)
            raise typer.Exit(130) from None
    for result in made.environments:
        if result.failure is not None:
            typer.echo(f"failed: {result.failure}", err=True)
    _name_missing(made.videos)
    differing = sum(bool(result.differences) for result in made.environments)
    if differing:
        typer.echo(f"warning: {differing} environments run on other versions than their data; see the report", err=True)
    typer.echo(
        f"report.json, tables, images and report.html are in {output}/; `ldm report {output}` prints them", err=True
    )


def verify(
    model: Annotated[str, typer.Argument(help="Model folder with its report.json, or name on the Hub.")],
    sample: Annotated[
        int | None, typer.Option(min=1, help="Environments, drawn at random. Default: all of the report.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.0, help="Time after which no further episode is waited for.")] = 10.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed, also of the draw. Default: the one after the report's.")
    ] = None,
) -> None:
    """Play again what a model's report says, on other seeds; exit status 1 if a figure differs or cannot be played.

    Figures differ where a test of the episodes says so at 5 %, corrected for their number, and where more than 1 % of the
    reference's improvement lies between them.
    """
    require("`ldm verify`", "evaluate")
    from rich.console import Console
    from rich.table import Table

    from ldm_hf.evaluation.render import number
    from ldm_hf.evaluation.verify import AGREES, NOT_PLAYED
    from ldm_hf.evaluation.verify import verify as run
    from ldm_hf.hub.pretrained import model_folder
    from ldm_hf.utils.progress import progress_bar

    table = Table(title="Published figures, and the same played again", title_justify="left")
    for heading in ("environment", "published", "again (95 % interval)", "verdict"):
        table.add_column(heading, justify="left" if heading in ("environment", "verdict") else "right")
    verdicts: list[str] = []
    with progress_bar("verifying", 0, "episode") as bar:

        def progress(environment: str, done: int, total: int) -> None:
            bar.set_description(f"verifying {environment}", refresh=False)
            bar.total = total
            bar.update(done - bar.n)

        for one in run(model_folder(model), sample=sample, minutes=minutes, seed=seed, progress=progress):
            verdicts.append(one.verdict)
            verdict = one.verdict + (f": {one.reason}" if one.reason else "")
            table.add_row(one.environment, number(one.published), number(one.again, one.interval), verdict)
    (Console() if sys.stdout.isatty() else Console(width=160)).print(table)
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    typer.echo(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if AGREES not in counts or set(counts) - {AGREES, NOT_PLAYED}:
        raise typer.Exit(1)


def references(
    data: Annotated[list[str], typer.Argument(help="Folders of datasets, or hf://datasets/...")],
    environments: Annotated[
        list[str] | None, typer.Option("--environments", "--environment", help="As of `ldm evaluate`.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File to write the ids worth imitating to, one a line.")] = None,
) -> None:
    """Say which references are worth imitating, before anything is trained on them.

    They are if they are better than random and than every trivial policy, keep it when they act deterministically, and
    improve by more than the noise of an evaluation.
    """
    require("`ldm references`", "evaluate")
    from rich.console import Console
    from rich.table import Table

    from ldm_hf.dataset_builder.anchors.anchors import WORTH, worth
    from ldm_hf.dataset_builder.format.reader import open_datasets
    from ldm_hf.evaluation.batches import chosen
    from ldm_hf.evaluation.references import check_references
    from ldm_hf.utils.files import replacing
    from ldm_hf.utils.progress import progress_bar

    opened = chosen(open_datasets(data), environments or ["all"])
    with progress_bar("random policy", len(opened), "environment") as bar:
        checks = check_references(opened, checked=lambda check: bar.update(1) and None)
    table = Table(title="References", title_justify="left")
    columns = ("random", "trivial", "first 10 %", "last 10 %", "deterministic", *WORTH[1:], "resolution", "")
    for column in ("environment", *columns):
        table.add_column(column, justify="left" if column in ("environment", "solved", "") else "right")
    for check in checks:
        info = check.info
        successes = () if info.assessment is None else info.assessment.successes
        random, *beside = worth(info.environment, info.deterministic_return, check.anchors, successes)
        best = None if check.anchors is None else check.anchors.best_trivial
        scores = [f"{value:.4g}" for value in (info.first10, info.last10, info.deterministic_return)]
        trivial = "—" if best is None else f"{best[1].mean:.4g}"
        verdict = "; ".join(check.warnings) or "worth imitating"
        table.add_row(info.environment, random, trivial, *scores, *beside, f"{check.resolution:.4g}", verdict)
    (Console() if sys.stdout.isatty() else Console(width=220)).print(table)
    fit = [check.info.environment for check in checks if not check.warnings]
    typer.echo(f"{len(fit)} of {len(checks)} references are worth imitating")
    if output is not None:
        with replacing(output) as temporary:
            temporary.write_text("".join(f"{environment}\n" for environment in fit))


def report(
    paths: Annotated[list[Path], typer.Argument(help="A report.json or its folder; several are compared.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write tables, images and report.html to; of one report, a card too."),
    ] = None,
    videos: Annotated[
        int,
        typer.Option(min=0, help="Environments that the report's model plays again for videos in report.html."),
    ] = 0,
) -> None:
    """Print the tables of reports; of several, also how scores grow with the size of the model."""
    require("`ldm report`", "evaluate", *(["video"] if videos else []))
    from ldm_hf.evaluation.report import Report

    folders = [path if path.is_dir() else path.parent for path in paths]
    if videos and (output is None or len(paths) > 1 or not (folders[0] / "config.json").is_file()):
        raise ConfigError("--videos needs --output, and one report in the folder of its model")
    loaded = [Report.load(path) for path in paths]
    for path in paths:
        print_report(path)
    if output is not None:
        from ldm_hf.evaluation.render import write_all

        with tempfile.TemporaryDirectory() as recorded:
            if videos:
                loaded = [_with_videos(loaded[0], folders[0], videos, Path(recorded))]
            write_all(loaded, output, folders, Path(recorded) if videos else None)
        typer.echo(f"Tables, images and report.html are in {output}/", err=True)


def _with_videos(report: "Report", model: Path, number: int, folder: Path) -> "Report":
    from ldm_hf.evaluation.protocol import Protocol
    from ldm_hf.evaluation.showcase import record_videos

    made = record_videos(model, "cpu", report, number, folder, Protocol())
    _name_missing(made)
    return replace(report, videos=made)


def _name_missing(videos: dict[str, dict[str, str]]) -> None:
    for environment, video in videos.items():
        if "file" not in video:
            typer.echo(f"no video of {environment}: {video['note']}", err=True)


def coverage(
    output: Annotated[Path, typer.Argument(help="Markdown file to write.")],
    runs: Annotated[list[Path] | None, typer.Option(help="Bank, or data folder of `ldm build`; repeatable.")] = None,
    model: Annotated[list[Path] | None, typer.Option(help="Model folder or report; repeatable.")] = None,
) -> None:
    """Write the ledger of the catalogue: how many environments come how far, from an id to a solved task, and why."""
    require("`ldm coverage`", "evaluate")
    from ldm_hf.dataset_builder.build.race.race_budget import RaceBudget
    from ldm_hf.evaluation.coverage import STAGES, ledger, ledger_page, read_records
    from ldm_hf.evaluation.report import Report
    from ldm_hf.utils.files import replacing

    places = ledger(read_records(runs or ()), [Report.load(path) for path in model or ()])
    with replacing(output) as temporary:
        temporary.write_text(ledger_page(places, RaceBudget().core_minutes), encoding="utf-8")
    counts = (f"{sum(stage in place.reached for place in places):,} {stage}" for stage in STAGES)
    typer.echo(", ".join(counts))


def rollout(
    model: Annotated[str, typer.Argument(help="Model folder, or name on the Hub.")],
    environment: Annotated[str, typer.Argument(help="Id: <library>/<Gymnasium id>.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes, one after another in one context.")] = 10,
    video: Annotated[Path | None, typer.Option(help="File to record them to: .mp4 or .gif.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the environment.")] = 0,
    device: Device = "cpu",
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the step first: for long rollouts on CUDA.")
    ] = False,
) -> None:
    """Let a model act in any registered environment, and print the returns."""
    from ldm_hf.evaluation.rollout import evaluate_environment
    from ldm_hf.evaluation.video import recording_video
    from ldm_hf.hub.pretrained import load_pretrained
    from ldm_hf.utils.progress import progress_bar

    loaded, processor = load_pretrained(model)
    loaded.to(device)  # type: ignore[arg-type]
    with contextlib.ExitStack() as stack:
        watch = None if video is None else stack.enter_context(recording_video(video))
        bar = stack.enter_context(progress_bar(environment, episodes, "episode"))
        result = evaluate_environment(
            loaded,
            processor,
            environment,
            episodes=episodes,
            rollouts=1,
            seed=seed,
            progress=lambda done, total: bar.update(done - bar.n) and None,
            watch=watch,
            compile=compile,
        )
    for number, (total, length) in enumerate(zip(result.returns[0], result.lengths[0], strict=True)):
        typer.echo(f"episode {number}: return {total:g}, {length} steps")
    typer.echo(f"mean return {result.mean_return:g}")


def print_report(path: Path) -> None:
    """Print the tables of a report."""
    from rich.console import Console

    from ldm_hf.evaluation.render import result_table, summary_tables
    from ldm_hf.evaluation.report import Report

    loaded = Report.load(path)
    # A table that is piped into a file keeps its columns.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    for table in (result_table(loaded), *summary_tables(loaded)):
        console.print(table)
