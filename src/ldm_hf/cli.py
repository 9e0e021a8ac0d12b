"""The ``ldm`` command. Whatever it needs is imported when a command runs, so that ``--help`` answers at once."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm_hf.data_commands import build, convert, publish
from ldm_hf.env_commands import environments
from ldm_hf.errors import InvalidValueError, LDMError, UnsupportedSpaceError

app = typer.Typer(
    help="Large Decision Models: collect data from any Gymnasium environment, train one policy on it, judge it, use it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(environments, name="env")
app.command()(build)
app.command()(publish)
app.command()(convert)

Output = Annotated[Path, typer.Option(help="Folder for the results.")]


@app.command()
def quickstart(
    output: Output = Path("runs/quickstart"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes and threads; by default the processors at hand.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the model.")] = 600,
) -> None:
    """Do the whole job on real environments: train references, record them, train a model, load it, evaluate it.

    Interrupted, it goes on from the last finished step when it is started again.
    """
    from ldm_hf.quickstart import quickstart as run

    try:
        report = run(output, jobs=jobs or len(os.sched_getaffinity(0)), seed=seed, steps=steps)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted: the same command goes on from the last finished step", err=True)
        raise typer.Exit(130) from None
    _print_report(report)
    typer.echo(f"Datasets, model, model card, curve and report.json are in {output}/", err=True)


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(help="YAML file of settings, see TrainingConfig.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="name=value, over the file; repeatable.")] = None,
) -> None:
    """Train a model on datasets, going on from the newest checkpoint. `accelerate launch -m ldm_hf.training` is the same."""
    from ldm_hf.processes import exit_with_owner
    from ldm_hf.training.config import TrainingConfig

    exit_with_owner()
    loaded = TrainingConfig.load(config, settings or [])

    from ldm_hf.training.loop import train as run

    folder = run(loaded)
    if folder is None:
        raise typer.Exit(128 + signal.SIGTERM)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"The model is in {folder}/", err=True)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model folder, as save_pretrained writes it.")],
    data: Annotated[
        str,
        typer.Option(help="Folder of datasets, or hf://datasets/...: the scores of the reference runs are in them."),
    ],
    output: Output,
    environment: Annotated[list[str] | None, typer.Option(help="Environment id; repeatable. Default: all.")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of a rollout.")] = 10,
    rollouts: Annotated[int, typer.Option(min=1, help="Rollouts of an environment.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of the environments.")] = 0,
    device: Annotated[str, typer.Option(help="Torch device of the model.")] = "cpu",
) -> None:
    """Score a model by the paper's protocol; writes report.json, the threshold curve and a model card."""
    from ldm_hf.dataset_builder.reader import open_datasets
    from ldm_hf.evaluation.evaluate import evaluate as run
    from ldm_hf.processes import exit_with_owner
    from ldm_hf.progress import progress_bar

    exit_with_owner()
    references = open_datasets(data, environment)
    total = len(references) * episodes * rollouts
    with progress_bar("evaluating", total, "episode") as bar:
        finished: dict[str, int] = {}

        def progress(name: str, done: int, _total: int) -> None:
            bar.set_description(f"evaluating {name}", refresh=False)
            bar.update(done - finished.get(name, 0))
            finished[name] = done

        run(
            model,
            references,
            output,
            episodes=episodes,
            rollouts=rollouts,
            seed=seed,
            device=device,
            progress=progress,
        )


@app.command()
def rollout(
    model: Annotated[str, typer.Argument(help="Model folder, or name on the Hub.")],
    environment: Annotated[str, typer.Argument(help="Id: <library>/<Gymnasium id>.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes, one after another in one context.")] = 10,
    video: Annotated[Path | None, typer.Option(help="File to record them to: .mp4 or .gif.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the environment.")] = 0,
    device: Annotated[str, typer.Option(help="Torch device of the model.")] = "cpu",
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the step first: for long rollouts on CUDA.")
    ] = False,
) -> None:
    """Let a model act in any registered environment, and print the returns."""
    import contextlib

    from ldm_hf.evaluation.evaluate import load_pretrained
    from ldm_hf.evaluation.rollout import evaluate_environment
    from ldm_hf.evaluation.video import recording_video
    from ldm_hf.progress import progress_bar

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


@app.command()
def report(path: Annotated[Path, typer.Argument(help="A report.json.")]) -> None:
    """Print the table of a report."""
    _print_report(path)


def _print_report(path: Path) -> None:
    from rich.console import Console

    from ldm_hf.evaluation.report import SUCCESS, Report, result_table

    loaded = Report.load(path)
    # A table that is piped into a file keeps its columns.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(result_table(loaded))
    for threshold in (SUCCESS, 1.0):
        console.print(f"{loaded.share_at(threshold):.0%} of the environments at {threshold:.0%} or above")


def run_command(command: Callable[..., Any]) -> None:
    """Run a command line; an error that its user can act on is one line and exit status 1."""
    try:
        command()
    except (LDMError, UnsupportedSpaceError, InvalidValueError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


def main() -> None:
    """Entry point of the ``ldm`` command."""
    run_command(app)
