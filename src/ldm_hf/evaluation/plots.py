"""Images of reports: the performance-threshold curve, bars by environment, scores over model sizes."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ldm_hf.evaluation.report import THRESHOLDS, Report, Summary
from ldm_hf.evaluation.results import HELD_OUT, RELATIONS, TRAINED, UNKNOWN, UNSEEN_LIBRARY
from ldm_hf.evaluation.scores import threshold_curve
from ldm_hf.utils.files import replacing

_HIGHEST = 1.2  # normalised score at which axes end: beyond the reference there is little to see
_LOWEST = -0.2
_BARS_AT_MOST = 100  # environments of one image; more would not be read
_COLORS = {TRAINED: "#3b82f6", HELD_OUT: "#d97706", UNSEEN_LIBRARY: "#dc2626", UNKNOWN: "#6b7280"}
_THRESHOLD_COLORS = ("#d97706", "#16a34a")


_INK = "#010203"  # a color that nothing else has, which pages replace by that of their text


def plot_threshold_curve(reports: Sequence[Report], path: Path) -> None:
    """Draw the share and number of scored environments at or above each threshold (paper figure 3).

    A line a model; of a single one, a line for those it was trained on, and for each kind of those that it was not.
    """
    _save(_threshold_curve(reports), path)


def threshold_curve_svg(reports: Sequence[Report]) -> str:
    """The same as an SVG element for a page, which takes the colors of the text around it."""
    import matplotlib

    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    style: Any = {
        **dict.fromkeys(names, _INK),
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "ldm_hf",
    }
    with matplotlib.rc_context(style):
        figure, text = _threshold_curve(reports), io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")


def _threshold_curve(reports: Sequence[Report]) -> Figure:
    thresholds = np.linspace(0, _HIGHEST, 241)
    figure, axes = _figure(7.5, 4.2)
    lines = [(_name(report), report) for report in reports] if len(reports) > 1 else _by_training(reports[0])
    for title, report in lines:
        scores = report.scores
        label = f"{title}, {len(scores)} environments"
        shares = 100 * threshold_curve(scores, thresholds) / max(1, len(scores))
        color = _COLORS[report.environments[0].training] if len(reports) == 1 and report.environments else None
        axes.step(100 * thresholds, shares, where="pre", linewidth=2, label=label, color=color)
    if len(lines) == 1:
        title, report = lines[0]
        _mark_thresholds(axes, report, thresholds)
    if len(lines) == 1:  # the number of environments, beside their share
        counts = axes.secondary_yaxis("right", functions=_linear(len(report.scores) / 100))
        counts.set_ylabel("environments")
    axes.set_xlim(0, 100 * _HIGHEST)
    axes.set_ylim(0, 105)
    axes.set_xlabel("normalised score reached (% of the reference's improvement)")
    axes.set_ylabel("scored environments (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return figure


def _by_training(report: Report) -> list[tuple[str, Report]]:
    """Those trained on first, then the others."""
    groups: dict[str, set[str]] = {}
    for result in sorted(report.environments, key=lambda result: RELATIONS.index(result.training)):
        groups.setdefault(result.training, set()).add(result.id)
    name = _name(report)
    return [(f"{name}, {title}", report.only(ids)) for title, ids in groups.items()] or [(name, report)]


def _mark_thresholds(axes: Any, report: Report, thresholds: np.ndarray) -> None:
    scores = report.scores
    shares = 100 * threshold_curve(scores, thresholds) / max(1, len(scores))
    axes.fill_between(100 * thresholds, shares, step="pre", alpha=0.12, color=_COLORS[TRAINED])
    for threshold, color, count in zip(THRESHOLDS, _THRESHOLD_COLORS, report.summary.reached, strict=True):
        share = 100 * count / max(1, len(scores))
        axes.axvline(100 * threshold, color=color, linestyle="--", linewidth=1)
        axes.plot(100 * threshold, share, "o", color=color, label=f"{count} ({share:.0f} %) at {threshold:.0%}")


def plot_scores(report: Report, path: Path) -> None:
    """Draw the normalised score of every environment, with its interval; of more than a hundred, evenly chosen ones."""
    scored = [result for result in report.environments if result.normalized_score is not None]
    scored.sort(key=lambda result: result.normalized_score or 0.0)
    chosen = np.unique(np.linspace(0, len(scored) - 1, min(len(scored), _BARS_AT_MOST)).round().astype(int))
    shown = [scored[index] for index in chosen] if scored else []
    figure, axes = _figure(8, 1.2 + 0.24 * max(4, len(shown)))
    for row, result in enumerate(shown):
        score, interval = result.normalized_score or 0.0, result.score_interval
        axes.barh(row, 100 * np.clip(score, _LOWEST, _HIGHEST), color=_COLORS[result.training], height=0.7)
        if interval is not None:
            axes.plot(100 * np.clip(interval, _LOWEST, _HIGHEST), [row, row], color="#111827", linewidth=1.2)
        if not _LOWEST <= score <= _HIGHEST:  # The bar ends here, the score does not.
            edge, side = (_HIGHEST, "right") if score > 0 else (_LOWEST, "left")
            text = f"{100 * score:.0f} %"
            axes.text(100 * edge * 0.97, row, text, va="center", ha=side, color="white", fontsize=7)
    axes.set_yticks(range(len(shown)), [result.id for result in shown], fontsize=7)
    axes.set_ylim(-0.7, max(len(shown), 1) - 0.3)
    axes.set_xlim(100 * _LOWEST, 100 * _HIGHEST)
    axes.axvline(0, color="#111827", linewidth=0.8)
    for threshold, color in zip(THRESHOLDS, _THRESHOLD_COLORS, strict=True):
        axes.axvline(100 * threshold, color=color, linestyle="--", linewidth=1)
    kinds = dict.fromkeys(result.training for result in reversed(shown))
    handles = [axes.barh([0], [0], color=_COLORS[kind]) for kind in kinds]
    if handles:
        axes.legend(handles, kinds, loc="lower right", fontsize=8)
    axes.set_xlabel("normalised score (%); lines are 95 % intervals")
    axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def plot_scaling(reports: Sequence[Report], path: Path) -> None:
    """Draw the share of environments at each threshold over the size of the models (paper section 5.3)."""
    figure, axes = _figure(7, 4.2)
    ordered = sorted(reports, key=lambda report: report.model["parameters"])
    sizes = [report.model["parameters"] for report in ordered]
    for index, (threshold, color) in enumerate(zip(THRESHOLDS, _THRESHOLD_COLORS, strict=True)):
        shares = [_share(report.summary, index) for report in ordered]
        errors = np.array([_errors(report.summary, index) for report in ordered]).T
        label = f"at or above {threshold:.0%} of the reference"
        axes.errorbar(sizes, shares, yerr=errors, marker="o", capsize=3, color=color, label=label)
    for report, size in zip(ordered, sizes, strict=True):
        axes.annotate(_name(report), (size, _share(report.summary, 0)), (4, 6), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.15)  # for the names
    axes.set_ylim(0, 105)
    axes.set_xlabel("parameters")
    axes.set_ylabel(f"environments (%) of {ordered[0].summary.scored}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="best")
    _save(figure, path)


def _share(summary: Summary, index: int) -> float:
    return 100 * summary.shares[index] if summary.shares else 0.0


def _errors(summary: Summary, index: int) -> tuple[float, float]:
    """How far the interval of a share reaches below and above it."""
    interval, share = summary.intervals[index], _share(summary, index)
    # A percentile interval need not hold the share itself.
    return (max(0.0, share - 100 * interval[0]), max(0.0, 100 * interval[1] - share)) if interval else (0.0, 0.0)


def _linear(factor: float) -> tuple[Any, Any]:
    scale = factor or 1.0
    return lambda share: np.asarray(share) * scale, lambda count: np.asarray(count) / scale


def _name(report: Report) -> str:
    return str(report.model.get("name", "model"))


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
