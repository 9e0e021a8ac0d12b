"""The page and the curves of what ``python -m ldm_hf.experiments.in_context`` found.

python -m ldm_hf.experiments.in_context.page runs/in-context docs/results/in_context
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm_hf.experiments.in_context.tasks import FAMILIES, held_out
from ldm_hf.utils.files import replacing

_COLORS = {
    "expert": "#111827",
    "random": "#9ca3af",
    "kept, exploring": "#16a34a",
    "kept, sampled": "#2563eb",
    "kept, greedy": "#7c3aed",
    "cleared, sampled": "#dc2626",
    "cleared, greedy": "#f59e0b",
    "Thompson": "#0891b2",
}
_DASHED = ("expert", "random", "Thompson")
_LAST = 5  # episodes whose mean is compared


Ways = dict[str, np.ndarray]
"""Returns of shape (tasks, episodes) of each way to act."""


@dataclass(frozen=True)
class Played:
    """What was played on the held-out tasks of a family.

    Attributes:
        title: the family, and what else its model was trained on.
        ways: the returns.
        groups: of each task, which of the held-out parameters it has: two tasks of one parameter say little more than one.
    """

    title: str
    ways: Ways
    groups: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "Played":
        """Read the file of a family in the folder ``MODEL-SEED``."""
        model, _, seed = path.parent.name.rpartition("-")
        ways = {way: np.array(returns) for way, returns in json.loads(path.read_text(encoding="utf-8")).items()}
        parameters = held_out(path.stem, len(ways["expert"]), int(seed))
        groups = np.unique(parameters.reshape(len(parameters), -1), axis=0, return_inverse=True)[1].ravel()
        return cls(path.stem if model == path.stem else f"{path.stem}, trained {model}", ways, groups)

    def interval(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means over parameters of values (tasks, ...), and half of their 95 % confidence intervals, by Student's t."""
        from scipy import stats

        means = np.stack([values[self.groups == group].mean(0) for group in np.unique(self.groups)])
        spread = means.std(0, ddof=1) / np.sqrt(len(means))
        return means.mean(0), stats.t.ppf(0.975, len(means) - 1) * spread

    def rows(self) -> list[list[str]]:
        """The table: a row of headings, then one for each way to act."""
        episodes = self.ways["expert"].shape[1]
        shown = [number for number in (1, 2, 3, 5, 8, 10, 15, 20) if number <= episodes]
        expert, random = (self.interval(self.ways[way][:, -_LAST:].mean(1))[0] for way in ("expert", "random"))
        rows = [["episode", *map(str, shown), f"last {_LAST}", "of the expert"]]
        for way, returns in self.ways.items():
            mean, half = self.interval(returns[:, -_LAST:].mean(1))
            cells = [f"{self.interval(returns[:, number - 1])[0]:.2f}" for number in shown]
            rows.append([way, *cells, f"{mean:.2f} ± {half:.2f}", f"{(mean - random) / (expert - random):.0%}"])
        return rows


def table(played: Played) -> list[str]:
    """Markdown of a family."""
    head, *rows = played.rows()
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"## {played.title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""]


def draw(found: Sequence[Played], path: Path) -> None:
    """Curves of all families, a panel each: mean returns by episode, with 95 % confidence intervals."""
    from matplotlib.figure import Figure

    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.3 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for panel, played in zip(axes.flat, found, strict=False):
        for way, color in _COLORS.items():
            if way not in played.ways:
                continue
            mean, half = played.interval(played.ways[way])
            episodes = np.arange(1, len(mean) + 1)
            panel.plot(episodes, mean, color=color, linestyle="--" if way in _DASHED else "-", label=way, linewidth=1.6)
            if way not in _DASHED:
                panel.fill_between(episodes, mean - half, mean + half, color=color, alpha=0.12, linewidth=0)
        panel.set_title(played.title, fontsize=10)
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
    found = [Played.read(path) for path in sorted(options.results.glob("*-*/*.json")) if path.stem in FAMILIES]
    options.output.mkdir(parents=True, exist_ok=True)
    draw(found, options.output / "curves.png")
    tasks = len(found[0].groups)
    parts = [
        "# Learning in context: returns on held-out tasks",
        "",
        "Made by `python -m ldm_hf.experiments.in_context.page`; [in_context.md](../../in_context.md) says what was done. "
        f"{tasks} held-out tasks of each family; means over their parameters; ± is half of a 95 % confidence interval "
        "over these (Student's t). *Of the expert*: 0 % is a random policy, 100 % the expert, which knows the parameter.",
        "",
        "![curves](curves.png)",
        "",
    ]
    for played in found:
        parts += table(played)
    with replacing(options.output / "README.md") as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
