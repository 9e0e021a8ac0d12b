"""The page and the plot of what `study --json` wrote: every environment's score with every variant.

python -m ldm_hf.experiments.m3dt.study_page figures.json docs/results/experts
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

COLORS = {
    "backbone": "#9ca3af",
    "dense": "#111827",
    "continued": "#dc2626",
    "wide": "#d97706",
    "random": "#2563eb",
    "gradient": "#16a34a",
    "direction": "#9333ea",
}
STYLES = {"": "-", "4": "-", "8": "--"}

Scores = dict[str, dict[str, list[float | None]]]


def mean(scores: Scores, variant: str, environments: Sequence[str]) -> np.ndarray:
    """The mean score of each seed over some environments; those without a score do not count."""
    table = [scores[variant][name] for name in environments if None not in scores[variant][name]]
    return np.array(table, dtype=float).mean(0)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text."""
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def sweep(studies: dict[int, Scores], order: Sequence[str], shown: int | None, form: str = ".1f") -> str:
    """A row per variant, a column per number of environments: means over the first of them, or over all."""
    rows = []
    for variant in max(studies.values(), key=len):
        cells = []
        for count, scores in studies.items():
            if variant not in scores:
                cells.append("")
                continue
            found = mean(scores, variant, order[: shown or count])
            cells.append(f"{found.mean():{form}} ({', '.join(f'{each:{form}}' for each in found)})")
        rows.append([variant, *cells])
    return markdown(["variant", *(f"{count} environments" for count in studies)], rows)


def by_environment(scores: Scores, order: Sequence[str]) -> str:
    """A row per environment, a column per variant; means over seeds."""
    rows = []
    for name in sorted(order):
        cells = [scores[variant][name] for variant in scores]
        rows.append([name, *("none" if None in cell else f"{np.mean(np.array(cell)):.0f}" for cell in cells)])
    means = [f"**{mean(scores, variant, order).mean():.1f}**" for variant in scores]
    return markdown(["environment", *scores], [*rows, ["**mean**", *means]])


def plot(studies: dict[int, Scores], order: Sequence[str], path: Path) -> None:
    """Means over all environments, and over the first ones only, as environments are added."""
    fewest = min(studies)
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = ((None, "all environments of each set"), (fewest, f"the {fewest} that all sets have"))
    for axes, (shown, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for variant in max(studies.values(), key=len):
            kind, _, number = variant.partition("-")
            counts = [count for count in studies if variant in studies[count]]
            found = np.array([mean(studies[count], variant, order[: shown or count]) for count in counts])
            style = {"color": COLORS[kind], "linestyle": STYLES[number], "marker": "o", "markersize": 3}
            axes.plot(counts, found.mean(1), label=variant, **style)
            axes.fill_between(counts, found.min(1), found.max(1), color=COLORS[kind], alpha=0.08, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(studies), [str(count) for count in studies])
        axes.set_xlabel("environments")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean normalised score (%)")
    figure.axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Write `README.md` and `sweep.png`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    data = json.loads(options.figures.read_text(encoding="utf-8"))
    order = data["order"]
    studies = {int(count): scores for count, scores in data["scores"].items()}
    losses = {int(count): each for count, each in data["losses"].items()}
    fewest = min(studies)
    options.output.mkdir(parents=True, exist_ok=True)
    parts = [
        "# Experts and dense models: scores\n\n"
        "Made by `python -m ldm_hf.experiments.m3dt.study_page`; docs/experts.md says what was compared, and what it shows. "
        "Scores are percentages of the reference's improvement, from 0 to 100, in brackets of each seed."
    ]
    if len(studies) > 1:
        plot(studies, order, options.output / "sweep.png")
        parts += [
            "![sweep](sweep.png)",
            "## All environments of each set",
            sweep(studies, order, None),
            f"## The {fewest} environments that all sets have",
            f"{', '.join(order[:fewest])}.",
            sweep(studies, order, fewest),
        ]
    for count, scores in studies.items():
        parts += [f"## {count} environments, each", by_environment(scores, order[:count])]
    parts += [
        "## Losses\n\nCross-entropy of the recorded actions in nats, over all environments of each set: less is better.",
        sweep(losses, order, None, ".3f"),
    ]
    settings = [[name, f"`{value}`"] for name, value in data["settings"].items()]
    parts += ["## Settings", markdown(["option", "value"], settings)]
    (options.output / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
