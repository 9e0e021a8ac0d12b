"""The page and the curves of what ``python -m ldm_hf.experiments.in_context`` found.

python -m ldm_hf.experiments.in_context.page runs/in-context docs/results/in_context
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from ldm_hf.utils.files import replacing

_COLORS = {
    "expert": "#111827",
    "random": "#9ca3af",
    "kept, exploring": "#16a34a",
    "kept, drawn": "#2563eb",
    "kept, likeliest": "#7c3aed",
    "cleared, drawn": "#dc2626",
    "cleared, likeliest": "#f59e0b",
    "Thompson": "#0891b2",
}
_DASHED = ("expert", "random", "Thompson")
_LAST = 5  # episodes whose mean is compared


def read(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Returns of shape (tasks, episodes) by model and family, and by way to act."""
    found = {}
    for path in sorted(folder.glob("*-*/*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and "expert" in values and "random" in values:
            model = path.parent.name.rpartition("-")[0]
            name = path.stem if model == path.stem else f"{path.stem}, trained {model}"
            found[name] = {way: np.array(returns) for way, returns in values.items()}
    return found


def summary(returns: np.ndarray) -> tuple[float, float]:
    """Mean over tasks of the last episodes, and half of its 95 % confidence interval."""
    last = returns[:, -_LAST:].mean(1)
    return float(last.mean()), float(1.96 * last.std(ddof=1) / np.sqrt(len(last)))


def table(name: str, ways: dict[str, np.ndarray]) -> list[str]:
    """Markdown of a family: returns by episode of each way to act."""
    episodes = next(iter(ways.values())).shape[1]
    shown = [number for number in (1, 2, 3, 5, 8, 10, 15, 20) if number <= episodes]
    expert, random = (ways[way][:, -_LAST:].mean() for way in ("expert", "random"))
    lines = [
        f"## {name}",
        "",
        f"| episode | {' | '.join(map(str, shown))} | last {_LAST} | of the expert |",
        f"|---|{'---:|' * (len(shown) + 2)}",
    ]
    for way, returns in ways.items():
        mean, half = summary(returns)
        cells = [f"{returns[:, number - 1].mean():.2f}" for number in shown]
        share = (mean - random) / (expert - random)
        lines.append(f"| {way} | {' | '.join(cells)} | {mean:.2f} ± {half:.2f} | {share:.0%} |")
    return [*lines, ""]


def draw(found: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Curves of all families, a panel each: mean returns by episode, with 95 % confidence intervals over tasks."""
    from matplotlib.figure import Figure

    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.3 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for place, (name, ways) in enumerate(found.items()):
        panel = axes.flat[place]
        for way, color in _COLORS.items():
            if way not in ways:
                continue
            returns = ways[way]
            mean, half = returns.mean(0), 1.96 * returns.std(0, ddof=1) / np.sqrt(len(returns))
            episodes = np.arange(1, len(mean) + 1)
            panel.plot(episodes, mean, color=color, linestyle="--" if way in _DASHED else "-", label=way, linewidth=1.6)
            if way not in _DASHED:
                panel.fill_between(episodes, mean - half, mean + half, color=color, alpha=0.12, linewidth=0)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("episode of the task")
        panel.set_ylabel("return")
        panel.grid(alpha=0.25)
    for panel in axes.flat[len(found) :]:
        panel.axis("off")
    handles = {
        label: line for panel in axes.flat for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="Folder of the experiment.")
    parser.add_argument("output", type=Path, help="Folder for README.md and curves.png.")
    options = parser.parse_args()
    found = read(options.results)
    options.output.mkdir(parents=True, exist_ok=True)
    draw(found, options.output / "curves.png")
    tasks = next(iter(next(iter(found.values())).values())).shape[0]
    parts = [
        "# Learning in context: returns on held-out tasks",
        "",
        "Made by `python -m ldm_hf.experiments.in_context.page`; [in_context.md](../../in_context.md) says what was done. "
        f"Means over {tasks} held-out tasks of each family; ± is half of the 95 % confidence interval over tasks. *Of the "
        "expert*: 0 % is a random policy, 100 % who knows the hidden parameter.",
        "",
        "![curves](curves.png)",
        "",
    ]
    for name, ways in found.items():
        parts += table(name, ways)
    with replacing(options.output / "README.md") as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
