"""Reports for people: Markdown tables, the model card, and a page that needs nothing else."""

import base64
import math
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from huggingface_hub import EvalResult
from rich.table import Table

from ldm_hf.evaluation.plots import plot_scaling, plot_scores, plot_threshold_curve, threshold_curve_svg
from ldm_hf.evaluation.report import SUCCESS, Report, Summary, comparable
from ldm_hf.evaluation.results import TRAINED, EnvironmentResult
from ldm_hf.hub.model_card import CARD, NOTES_MARK, card_metadata, render, usage
from ldm_hf.utils.files import replacing

CURVE, BARS, SCALING = "threshold_curve.png", "scores.png", "scaling.png"
TABLES, PAGE = "tables.md", "report.html"
_MOST_LISTED = 5  # environments in a card's metadata, each a dozen lines that a reader has to pass; then groups of them


def write_all(reports: Sequence[Report], folder: Path, sources: Sequence[Path], recorded: Path | None = None) -> None:
    """Write every image, the tables, the page and, of a single report, the model card.

    Several are drawn on the environments that all have a score of; tables are of all that each has.

    Args:
        reports: one, or several of models to compare.
        folder: where to.
        sources: folders of the reports.
        recorded: folder of the videos of a single report; by default the report's.

    Raises:
        ConfigError: several reports have nothing in common.
    """
    if len(reports) == 1:
        plot_threshold_curve(reports, folder / CURVE)
        plot_scores(reports[0], folder / BARS)
        holds_model = (sources[0] / "config.json").is_file()
        _write(folder / CARD, model_card(reports[0], str(sources[0]) if holds_model else None))
    else:
        compared = comparable([report.main for report in reports])
        plot_threshold_curve(compared, folder / CURVE)
        plot_scaling(compared, folder / SCALING)
    images = [] if len(reports) == 1 else [SCALING]
    _write(folder / TABLES, "\n".join(f"## {title_of(report)}\n\n{markdown_tables(report)}" for report in reports))
    _write(folder / PAGE, page(reports, [folder / name for name in images], [recorded] if recorded else sources))


def markdown_tables(report: Report) -> str:
    """All tables of a report as Markdown."""
    return _template("tables.md").render(report=report)


def model_card(report: Report, load_as: str | None = None) -> str:
    """Fill ``model_card.md``; its metadata are those of ``huggingface_hub``, which the Hub reads as ``model-index``.

    Args:
        report: the results.
        load_as: folder of the model; by default the one that was evaluated.

    Raises:
        CheckpointError: the metadata are not what the Hub takes.
    """
    name, known = report.model.get("name", "model"), report.model.get("card", {})
    trained = [result.id for result in report.environments if result.training == TRAINED]
    first = next(iter(trained or [result.id for result in report.environments]), None)
    template = resources.files("ldm_hf.evaluation").joinpath("model_card.md").read_text(encoding="utf-8")
    return render(
        template,
        filters=_FILTERS,
        name=name,
        report=report,
        metadata=card_metadata(name, known, _metrics(report)),
        base_model=known.get("base_model"),
        usage=usage(load_as or report.model.get("folder") or name, first),
        success=SUCCESS,
        tables=markdown_tables(report),
        notes_mark=NOTES_MARK,
    )


def page(reports: Sequence[Report], images: Sequence[Path], sources: Sequence[Path]) -> str:
    """One HTML file with the tables, images and videos in it; ``sources`` are the folders that hold the videos."""
    shown = {image.name: _data_url(image, "image/png") for image in images}
    videos = {
        environment: _data_url(source / video["file"], "video/mp4")
        for report, source in zip(reports, sources, strict=True)
        for environment, video in report.videos.items()
        if "file" in video and _is_within(source / video["file"], source)
    }
    curve = markupsafe.Markup(threshold_curve_svg(reports))
    return _template("report.html").render(reports=reports, images=shown, videos=videos, curve=curve)


def result_table(report: Report) -> Table:
    """The table that the command line prints."""
    table = Table(title="Large Decision Model against its reference policies")
    table.add_column("environment")
    headings = ("random", "reference", "known good", "share", "solved", "LDM", "share", "solved", "normalised")
    cleared = any(result.cleared_returns for result in report.environments)
    for heading in (*headings, *(("context cleared", "kept") if cleared else ())):
        table.add_column(heading, justify="right")
    for result in report.environments:
        random = (result.random or {}).get("mean")
        score = "failed" if result.failure else percent(result.normalized_score)
        reference = (number(result.deterministic_return), known_good(result), *worth(result, "reference_"))
        model = (number(result.mean_return), *worth(result))
        context = (number(result.cleared_mean), result.context_verdict or "—") if cleared else ()
        table.add_row(result.id, number(random), *reference, *model, score, *context)
    return table


def summary_tables(report: Report) -> list[Table]:
    """The tables of groups of environments that the command line prints."""
    tables = []
    for title, groups in report.groups.items():
        table = Table(title=f"By {title}", title_justify="left")
        table.add_column(title)
        against = ("at 80 %", "matched", "at 80 % of deterministic", "matched")
        for heading in ("number", "scored", "failed", "median", *against, "solved", "solved by references"):
            table.add_column(heading, justify="right")
        for name, summary in groups.items():
            counts = (summary.environments, summary.scored, summary.failed)
            shares = [how(summary, index) for how in (reached, deterministic) for index in (0, 1)]
            table.add_row(name, *map(str, counts), percent(summary.median), *shares, *solved(summary))
        tables.append(table)
    return tables


def _is_within(file: Path, folder: Path) -> bool:
    """Whether a file is there, and in the folder: a report from elsewhere names what it likes."""
    return file.is_file() and file.resolve().is_relative_to(folder.resolve())


def title_of(report: Report) -> str:
    """How headings name a model."""
    parameters = report.model.get("parameters")
    return report.model.get("name", "model") + ("" if parameters is None else f" ({parameters:,} parameters)")


def percent(score: float | None, interval: Sequence[float] | None = None) -> str:
    """A score as people read it, with its interval."""
    if score is None:
        return "not scored"
    return f"{100 * score:.1f} %" + (
        "" if interval is None else f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    )


def known_good(result: EnvironmentResult) -> str:
    """The known good score as people read it; in brackets where it cannot be compared with a return."""
    known = result.known_good
    if known is None:
        return "—"
    return f"{known['good']:.4g}" if known["comparable"] else f"({known['good']:.4g})"


def worth(result: EnvironmentResult, whose: str = "") -> tuple[str, str]:
    """How far a model, or with ``reference_`` its reference, is on the way to known good, and whether it solves the task."""
    share, solved = getattr(result, f"{whose}share"), getattr(result, f"{whose}solved")
    if share is None:
        return "—", "—"
    return f"{share:.0%}", "yes" if solved else "no"


def number(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A return as people read it, with its interval."""
    if value is None:
        return "—"
    return f"{value:.2f}" + ("" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})")


def rounded(value: float | None, interval: Sequence[float] | None = None) -> str:
    """A return to a digit more than its interval says is known; to four digits where there is no interval."""
    if value is None:
        return "—"
    width = 0.0 if interval is None else (interval[1] - interval[0]) / 2
    if width <= 0:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,.{max(0, 1 - math.floor(math.log10(width)))}f}"


def score_text(score: float | None, interval: Sequence[float] | None = None) -> str:
    """A score in whole percent, which is as much as some episodes tell; in tenths where its interval is narrower."""
    if score is None:
        return "—"
    digits = 1 if interval is not None and 0 < interval[1] - interval[0] < 0.02 else 0
    return f"{100 * score:,.{digits}f} %"


def verdict(score: float | None) -> str:
    """What a score says of a model beside its reference, in a word."""
    if score is None:
        return "failed"
    nearly = score + 1e-9
    return "matched" if nearly >= 1 else "80 %" if nearly >= SUCCESS else "below"


def reached(summary: Summary, index: int) -> str:
    """How many environments reach a threshold, and their share of the scored ones."""
    if summary.shares is None:
        return "—"
    interval = summary.intervals[index]
    around = "" if interval is None else f", {100 * interval[0]:.0f} to {100 * interval[1]:.0f}"
    return f"{summary.reached[index]} ({100 * summary.shares[index]:.0f} %{around})"


def deterministic(summary: Summary, index: int) -> str:
    """The same against what the reference policy returns without exploring."""
    if not summary.deterministic_scored:
        return "—"
    count = summary.deterministic_reached[index]
    return f"{count} ({100 * count / summary.deterministic_scored:.0f} %)"


def solved(summary: Summary) -> tuple[str, str]:
    """How many environments the model and the references solve, of those whose known good score can be compared."""
    if not summary.comparable:
        return "—", "—"
    return f"{summary.solved} of {summary.comparable}", f"{summary.reference_solved} of {summary.comparable}"


def _metrics(report: Report) -> list[EvalResult]:
    """Of each environment if there are few, of groups of them otherwise: ``report.json`` has all of them."""
    task: dict[str, Any] = {"task_type": "reinforcement-learning", "task_name": "reinforcement learning"}
    if len(report.environments) > _MOST_LISTED:
        found = [
            (f"{summary.scored} environments ({relation})", "median_score", "median normalised score", summary.median)
            for relation, summary in report.groups["training data"].items()
        ]
    else:
        found = [
            (result.id, *metric)
            for result in report.environments
            for metric in (
                ("mean_return", "mean return", result.mean_return),
                ("normalized_score", "share of the reference's improvement", result.normalized_score),
                ("deterministic_score", "the same of the deterministic reference", result.deterministic_score),
            )
        ]
    return [
        EvalResult(
            **task,
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for dataset, kind, name, value in found
        if value is not None
    ]


_FILTERS: dict[str, Callable[..., Any]] = {
    "percent": percent,
    "number": number,
    "reached": reached,
    "deterministic": deterministic,
    "title": title_of,
    "known_good": known_good,
    "worth": worth,
    "solved": solved,
    "rounded": rounded,
    "score": score_text,
    "verdict": verdict,
    "plain": lambda text: text.partition(" (")[0],
    "around": lambda text: text.partition(" (")[2].rstrip(")"),
}


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=name.endswith(".html")
    )
    environment.filters.update(_FILTERS)
    return environment.from_string(resources.files("ldm_hf.evaluation").joinpath(name).read_text(encoding="utf-8"))


def _data_url(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text.rstrip() + "\n", encoding="utf-8")
