"""The page and the figure of what ``python -m ldm_hf.experiments.m3dt.capacity`` measured.

python -m ldm_hf.experiments.m3dt.capacity.page runs/capacity docs/results/experts
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from ldm_hf.experiments.m3dt.capacity.tables import (
    Kind,
    Records,
    Table,
    additions,
    by_cost,
    by_router,
    by_tasks,
    cosines,
    families,
    read,
)
from ldm_hf.utils.files import replacing

_LINES: dict[Kind, tuple[str, str, str, str]] = {
    ("fixed", "mixed", "dense"): ("dense, fixed steps", "#dc2626", "--", "v"),
    ("proportional", "mixed", "dense"): ("dense, steps in proportion", "#dc2626", "-", "^"),
    ("m3dt", "mixed", "dense"): ("dense, the experts' steps", "#f59e0b", "-", "s"),
    ("m3dt", "mixed", "wide"): ("as wide as the experts, their steps", "#111827", "-", "D"),
    ("twice", "mixed", "wide"): ("as wide, about the experts' FLOPs", "#6b7280", "--", "d"),
    ("m3dt", "mixed", "random"): ("experts, each task's own", "#16a34a", "--", "o"),
    ("m3dt", "mixed", "random+five"): ("experts, M3DT's router", "#2563eb", "-", "x"),
    ("m3dt", "mixed", "random+five-supervised"): ("experts, supervised router", "#16a34a", "-", "P"),
}
"""What the figure shows of each kind: a name, a colour, a line and a marker."""


def draw(records: Records, path: Path) -> None:
    """Scores over tasks, a panel for each family, and at the highest number of tasks over FLOPs."""
    from matplotlib.figure import Figure

    names = families(records)
    figure = Figure(figsize=(4.2 * (len(names) + 1), 3.8), layout="constrained")
    axes: Any = figure.subplots(1, len(names) + 1, squeeze=False, sharey=True)[0]
    for panel, family in zip(axes, names, strict=False):
        for kind, (name, color, style, marker) in _LINES.items():
            found = _curve(records, family, kind)
            if found:
                middle = [mean(values) for values in found.values()]
                panel.plot(list(found), middle, style, color=color, marker=marker, markersize=4, label=name)
                ends = [[choose(values) for values in found.values()] for choose in (min, max)]
                panel.fill_between(list(found), *ends, color=color, alpha=0.12, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks([10, 20, 40, 80, 160], ["10", "20", "40", "80", "160"])
        panel.set_xlabel("tasks")
        panel.set_title(family, fontsize=10)
    _draw_costs(records, names[0], axes[-1])
    for panel in axes:
        panel.grid(alpha=0.25)
    axes[0].set_ylabel("score (0 random, 100 best)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _curve(records: Records, family: str, kind: Kind) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for cell, record in records.items():
        if (cell.family, cell.budget, cell.batch, cell.variant) == (family, *kind):
            found.setdefault(cell.tasks, []).append(record["score"])
    return dict(sorted(found.items()))


def _draw_costs(records: Records, family: str, panel: Any) -> None:
    most = max(cell.tasks for cell in records if cell.family == family)
    for (budget, batch, variant), (_, color, style, marker) in _LINES.items():
        key = (family, most, budget, batch, variant)
        found = [
            record
            for cell, record in records.items()
            if (cell.family, cell.tasks, cell.budget, cell.batch, cell.variant) == key
        ]
        for record in found:
            filled = color if style == "-" else "none"
            size = 12 + record["parameters"] / 4000
            line = {} if marker == "x" else {"edgecolors": color}
            panel.scatter(record["flops"], record["score"], size, filled if line else color, marker=marker, **line)
    panel.set_xscale("log")
    panel.set_xlabel("FLOPs of all stages (area: parameters that act)")
    panel.set_title(f"{family}, {most} tasks", fontsize=10)


def markdown(table: Table) -> str:
    """A table of a page."""
    head, *rows = table
    words = sum(name in ("budget", "variant", "batch", "way", "router") for name in head)
    lines = [head, [*["---"] * words, *["---:"] * (len(head) - words)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(records: Records, settings: dict[str, Any]) -> str:
    """The page."""
    parts = [
        "# Experts and dense models: scores\n\n"
        "Made by `python -m ldm_hf.experiments.m3dt.capacity.page`; [experts.md](../../experts.md) says what was compared, "
        "and what it shows. 0 is the uniform random policy, 100 the best one, exactly; of several seeds the mean, the "
        f"lowest and the highest. {settings['steps_per_task']} steps per task where they are in proportion.",
        "![Scores over tasks and over FLOPs](capacity.png)",
    ]
    for family in families(records):
        most = max(cell.tasks for cell in records if cell.family == family)
        parts += [f"## {family}", markdown(by_tasks(records, family))]
        parts += [f"### Routers, {most} tasks", markdown(by_router(records, family, most))]
        parts += [f"### Costs, {most} tasks", markdown(by_cost(records, family, most))]
        parts += ["### Mean cosine between tasks' gradients of the layers", markdown(cosines(records, family))]
    parts += ["## Tasks that are added", markdown(additions(records))]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write `README.md` and `capacity.png`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="Folder of the study.")
    parser.add_argument("output", type=Path, help="Folder for README.md and capacity.png.")
    options = parser.parse_args()
    records = read(options.results)
    settings = json.loads((options.results / "settings.json").read_text(encoding="utf-8"))
    options.output.mkdir(parents=True, exist_ok=True)
    draw(records, options.output / "capacity.png")
    with replacing(options.output / "README.md") as temporary:
        temporary.write_text(text(records, settings), encoding="utf-8")


if __name__ == "__main__":
    main()
