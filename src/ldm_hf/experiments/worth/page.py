"""The page of what ``python -m ldm_hf.experiments.worth`` measured.

python -m ldm_hf.experiments.worth.page runs/worth runs/references docs/results/worth/ldm-base
"""

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.experiments.worth.tasks import UNKNOWN, in_order
from ldm_hf.utils.files import replacing

_COLUMNS = {
    "zero-shot": "#9ca3af",
    "pretrained": "#16a34a",
    "pretrained, averaged": "#0d9488",
    "pretrained, LoRA": "#86efac",
    "random weights": "#dc2626",
    "MLP": "#2563eb",
    "SB3, same steps": "#f59e0b",
    "SB3, same time": "#b45309",
}

_COMPARED = (
    *itertools.product(
        ("pretrained", "pretrained, averaged"), ("random weights", "MLP", "SB3, same steps", "SB3, same time")
    ),
    ("pretrained, averaged", "pretrained"),
)


@dataclass(frozen=True)
class Scale:
    """What returns of an environment are placed between: a random policy (0) and its reference (1).

    Attributes:
        random, reference: mean returns.
        known_good: where there is one that can be compared.
    """

    random: float
    reference: float
    known_good: float | None

    def place(self, value: float) -> float:
        """Where a mean return lies."""
        return (value - self.random) / (self.reference - self.random)


@dataclass(frozen=True)
class Score:
    """Scores of one way to learn, one for each seed.

    Attributes:
        values: of shape (seeds,).
        seconds: of learning, the median.
        transitions: that were learned from, the median.
    """

    values: np.ndarray
    seconds: float
    transitions: float

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(self.values.mean())

    @property
    def half(self) -> float:
        """Half of the 95 % confidence interval of the mean over seeds, by Student's t; infinite of one seed."""
        from scipy import stats

        if len(self.values) < 2:
            return float("inf")
        spread = float(self.values.std(ddof=1)) / np.sqrt(len(self.values))
        return float(stats.t.ppf(0.975, len(self.values) - 1)) * spread

    def is_apart_from(self, other: "Score") -> bool:
        """Whether the intervals do not overlap."""
        return abs(self.mean - other.mean) > self.half + other.half


Scores = Mapping[tuple[str, int], Mapping[str, Score]]
"""By environment and number of episodes, then by way."""


def read_scores(folder: Path, scales: Mapping[str, Scale]) -> Scores:
    """The cells of a folder, as scores."""
    found: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((folder / "cells").glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        if cell["environment"] in scales:
            found[cell["environment"], cell["episodes"]][cell["way"]].append(cell)
    return {
        key: {way: _score(cells, scales[key[0]]) for way, cells in ways.items()} for key, ways in sorted(found.items())
    }


def read_scales(data: Path, environments: Sequence[str] | None = None) -> dict[str, Scale]:
    """The scales of environments, by default of all whose data are there, from the assessments of their references."""
    scales = {}
    for dataset in open_datasets(str(data), environments):
        info = dataset.best_run().info
        assert info.assessment is not None
        anchors = info.assessment.anchors
        known = anchors.known.good if anchors.known is not None and anchors.known.comparable else None
        scales[info.environment] = Scale(anchors.random.mean, float(np.mean(info.deterministic_returns)), known)
    return scales


def compare(scores: Scores, episodes: int, one: str, other: str) -> dict[str, int]:
    """In how many environments one way is above another, with and without overlapping intervals, and below it."""
    counts = dict.fromkeys(("environments", "above", "apart above", "apart below"), 0)
    for (_, count), ways in scores.items():
        if count != episodes or one not in ways or other not in ways:
            continue
        apart, above = ways[one].is_apart_from(ways[other]), ways[one].mean > ways[other].mean
        counts["environments"] += 1
        counts["above"] += above
        counts["apart above"] += apart and above
        counts["apart below"] += apart and not above
    return counts


def page(scores: Scores, scales: Mapping[str, Scale], model: str) -> str:
    """Markdown: the answer first, then a table for each number of episodes."""
    numbers = sorted({episodes for _, episodes in scores} - {0})
    lines = [
        f"# What {model} is worth in environments that it has not seen",
        "",
        "Made by `python -m ldm_hf.experiments.worth.page`; [worth.md](../../../worth.md) says what was done. Scores: 0 % "
        "is a random policy, 100 % the reference whose episodes were learned from; ± is half of a 95 % confidence interval "
        "over seeds (Student's t), and missing where there is one. Each is the mean of 20 evaluation episodes, the same for "
        "all.",
        "",
        "| episodes | way | above | environments | higher | apart, higher | apart, lower |",
        "|---:|---|---|---:|---:|---:|---:|",
    ]
    for episodes, (one, other) in itertools.product(numbers, _COMPARED):
        counts = compare(scores, episodes, one, other)
        if counts["environments"]:
            lines.append(f"| {episodes} | {one} | {other} | {' | '.join(map(str, counts.values()))} |")
    lines += ["", "![scores](scores.png)", ""]
    for episodes in numbers:
        lines += [f"## {episodes} episode{'s' if episodes > 1 else ''}", "", *_table(scores, scales, episodes), ""]
    return "\n".join(lines)


def draw(scores: Scores, path: Path) -> None:
    """Mean scores over environments by number of episodes, clipped to 0 and 120 %, and one panel for each environment."""
    from matplotlib.figure import Figure

    names = in_order({name for name, _ in scores})
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for panel, name in zip(axes.flat, names, strict=False):
        for way, color in _COLUMNS.items():
            points = [(count, ways[way]) for (key, count), ways in scores.items() if key == name and way in ways]
            counts = [max(count, 1) for count, _ in points]
            means = np.clip([score.mean for _, score in points], -0.2, 1.2)
            style = "o" if way == "zero-shot" else "o-"
            panel.plot(counts, means, style, color=color, label=way, markersize=3, linewidth=1.3)
        panel.set_title(name, fontsize=7)
        panel.set_xscale("log")
        panel.set_ylim(-0.25, 1.25)
        panel.grid(alpha=0.25)
    for panel in axes.flat[len(names) :]:
        panel.axis("off")
    handles = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False
    )
    figure.supxlabel("episodes learned from", fontsize=8)
    figure.supylabel("score, clipped to -20 and 120 %", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _score(cells: Sequence[dict[str, Any]], scale: Scale) -> Score:
    values = [scale.place(float(np.mean(np.concatenate(cell["returns"])))) for cell in cells]
    seconds, transitions = ([float(cell[name]) for cell in cells] for name in ("seconds", "transitions"))
    return Score(np.array(values), float(np.median(seconds)), float(np.median(transitions)))


def _table(scores: Scores, scales: Mapping[str, Scale], episodes: int) -> list[str]:
    there = {way for (_, count), measured in scores.items() if count == episodes for way in measured}
    ways = [way for way in _COLUMNS if way in there]
    head = ["environment", "transitions", "known good", "zero-shot", *ways]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    found: dict[str, list[Score]] = defaultdict(list)
    for name in in_order({name for name, _ in scores}):
        measured = scores.get((name, episodes), {})
        if not measured:
            continue
        zero = scores.get((name, 0), {}).get("zero-shot")
        good = scales[name].known_good
        transitions = next(score.transitions for way, score in measured.items() if not way.startswith("SB3"))
        cells = [f"`{name}`{' ᵘ' if name in UNKNOWN else ''}", f"{transitions:,.0f}"]
        cells += ["" if good is None else f"{scales[name].place(good):.0%}", "" if zero is None else f"{zero.mean:.0%}"]
        rows.append([*cells, *(_cell(measured.get(way)) for way in ways)])
        for way, score in measured.items():
            found[way].append(score)
    rows.append(["median seconds of learning", "", "", "", *(_median(found[way]) for way in ways)])
    return [f"| {' | '.join(row)} |" for row in rows] + ["", "ᵘ of a library that the model does not know."]


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.mean:.0%}" + (f" ± {100 * score.half:.0f}" if np.isfinite(score.half) else "")


def _median(scores: Sequence[Score]) -> str:
    return f"{np.median([score.seconds for score in scores]):.0f}" if scores else ""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="Folder of the benchmark.")
    parser.add_argument("data", type=Path, help="Folder of datasets of the references.")
    parser.add_argument("output", type=Path, help="Folder for README.md and scores.png.")
    parser.add_argument("--model", default="ldm-base", help="Its name, for the title.")
    options = parser.parse_args()
    scales = read_scales(options.data)
    scores = read_scores(options.results, scales)
    options.output.mkdir(parents=True, exist_ok=True)
    draw(scores, options.output / "scores.png")
    with replacing(options.output / "README.md") as temporary:
        temporary.write_text(page(scores, scales, options.model), encoding="utf-8")


if __name__ == "__main__":
    main()
