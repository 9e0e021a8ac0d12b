"""What size and more environments bring: models of three sizes on 15, 45 and 120 environments, each set part of the next.

    python -m ldm_hf.experiments.scaling --recipe recipes/ldm-base/train.yaml --data DATA --output RUNS --page PAGE

All sizes see as many transitions of an environment (``proportional``), so neither time nor data is what more environments
cost the first 15. For the middle size there is also a total that does not grow (``fixed``: the steps of 45 environments).
They are trained with the settings of ldm-base's last training, from weights at random. Sets take environments library by
library in a fixed order, so that the first 15 are of 15 libraries. Scores are 0 at a random policy and 100 at the
reference's deterministic one. Cells that are finished are only read when the command is run again, and one that was
interrupted resumes.
"""

import argparse
import itertools
import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.experiments.commands import run_ldm, score
from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.utils.files import replacing

NUMBERS = (15, 45, 120)
SIZES: dict[str, dict[str, int]] = {
    "small": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 192},
    "middle": {"num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 384},
    "large": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 768},
}
BATCH = 32


@dataclass(frozen=True)
class Cell:
    """A model that is trained and evaluated."""

    size: str
    number: int
    budget: str = "proportional"
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.size}-{self.number}-{self.budget}-{self.seed}"

    def steps(self, per_environment: int) -> int:
        """Optimizer steps in all, given those of an environment."""
        return per_environment * (NUMBERS[1] if self.budget == "fixed" else self.number)


def cells(seeds: int) -> list[Cell]:
    """All of them, the longest of each seed first, so that none is left to run alone at the end."""
    found = [Cell(size, number, seed=seed) for seed in range(seeds) for number in NUMBERS for size in SIZES]
    found += [Cell("middle", number, "fixed", seed) for seed in range(seeds) for number in (NUMBERS[0], NUMBERS[-1])]
    sizes = list(SIZES)
    return sorted(found, key=lambda cell: (cell.seed, -sizes.index(cell.size), -cell.number))


def in_turns(environments: Sequence[str]) -> list[str]:
    """The environments library by library: one of each, then a second one of each that has two, and so on."""
    shuffled = random.Random(0).sample(sorted(environments), len(environments))
    libraries: dict[str, list[str]] = {}
    for environment in shuffled:
        libraries.setdefault(EnvironmentId.parse(environment).library, []).append(environment)
    return [each for turn in itertools.zip_longest(*libraries.values()) for each in turn if each is not None]


def measure(cell: Cell, order: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate a cell, unless that was done: its size and the score of each environment, from 0 to 1."""
    folder = options.output / cell.name
    record = folder / "cell.json"
    if record.exists():
        return dict(json.loads(record.read_text(encoding="utf-8")))
    environments = list(order[: cell.number])
    settings = {
        **{"data": str(options.data), "output_dir": str(folder), "environments": environments, "model": "nano"},
        **{"model_overrides": SIZES[cell.size], "max_steps": cell.steps(options.steps), "train_batch_size": BATCH},
        **{
            "optim": "muon",
            "learning_rate": 2e-3,
            "warmup_steps": 20,
            "decay_fraction": 0.6,
            "previous_action_dropout": 0.5,
        },
        **{"seed": cell.seed, "bf16": True},
        **{"report_to": "none", "save_steps": 250, "save_total_limit": 1, "cache_gib": 0.75, "logging_steps": 50},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    run_ldm(folder, "train", "--config", folder / "settings.yaml")
    evaluation = ("--data", options.data, "--output", folder / "evaluation", "--episodes", options.episodes)
    chosen = [word for environment in environments for word in ("--environments", environment)]
    run_ldm(folder, "evaluate", folder / "model", *evaluation, "--rollouts", 1, *chosen)
    report = json.loads((folder / "evaluation" / "report.json").read_text(encoding="utf-8"))
    found = {
        **asdict(cell),
        "steps": cell.steps(options.steps),
        "parameters": report["model"]["parameters"],
        "scores": {each["id"]: score(each) for each in report["environments"] if each["failure"] is None},
    }
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


COLUMNS = (
    *("size", "environments", "budget", "seed", "steps", "parameters"),
    *(word for number in NUMBERS[:-1] for word in (f"first {number}", f"first {number}, at 80 %")),
    *("all", "all, at 80 %"),
)


def row(cell: dict[str, Any], order: Sequence[str]) -> list[str]:
    """A cell's row of the table: its scores on the sets that are part of its own, and on all that it was trained on."""
    sets = [order[:number] if number <= cell["number"] else () for number in NUMBERS[:-1]]
    chosen = [[cell["scores"][name] for name in each if name in cell["scores"]] for each in sets]
    means = [
        text
        for scores in (*chosen, list(cell["scores"].values()))
        for text in ((_mean(scores), f"{np.mean(np.array(scores) >= 0.8):.0%}") if scores else ("", ""))
    ]
    return [
        cell["size"],
        *map(str, (cell["number"], cell["budget"], cell["seed"])),
        *(f"{cell[name]:,}" for name in ("steps", "parameters")),
        *means,
    ]


def _mean(scores: Sequence[float]) -> str:
    return f"{100 * float(np.mean(scores)):.1f}"


def write_page(found: Sequence[dict[str, Any]], order: Sequence[str], folder: Path, steps: int) -> None:
    """Write README.md, scaling.png and cells.json."""
    folder.mkdir(parents=True, exist_ok=True)
    first = order[: NUMBERS[0]]
    _draw(found, first, folder / "scaling.png")
    lines = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)], *(row(cell, order) for cell in found)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    about = (__doc__ or "").partition("\n\n")[2].strip("\n")
    text = f"# Size, and number of environments\n\n{about}\n\n{steps} steps of {BATCH} sequences per environment.\n\n"
    text += f"![Scores over the number of environments](scaling.png)\n\n{table}\n\nThe first 15: {', '.join(first)}.\n"
    for name, content in (("README.md", text), ("cells.json", json.dumps(list(found), indent=1) + "\n")):
        with replacing(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


def _draw(found: Sequence[dict[str, Any]], first: Sequence[str], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    styles = zip(SIZES, ("#9ca3af", "#2563eb", "#111827"), ("s", "o", "^"), strict=True)
    for size, color, marker in styles:
        for budget, line in (("proportional", "-"), ("fixed", "--")):
            for panel, names in zip(panels, (set(first), None), strict=True):
                points: dict[int, list[float]] = {}
                for cell in found:
                    also = budget == "fixed" and cell["number"] == NUMBERS[1]  # where both budgets are the same
                    if cell["size"] == size and (cell["budget"] == budget or (also and size == "middle")):
                        scores = [value for name, value in cell["scores"].items() if names is None or name in names]
                        points.setdefault(cell["number"], []).append(100 * float(np.mean(scores)))
                if points:
                    numbers = sorted(points)
                    middle = [float(np.mean(points[number])) for number in numbers]
                    label = f"{size}, steps {'in proportion' if budget == 'proportional' else 'fixed'}"
                    panel.plot(numbers, middle, line, color=color, marker=marker, markersize=4, label=label)
    for panel, title in zip(panels, ("the first 15", "all that it was trained on"), strict=True):
        panel.set_title(title, fontsize=10)
        panel.set_xscale("log")
        panel.set_xticks(NUMBERS, [str(number) for number in NUMBERS])
        panel.minorticks_off()
        panel.set_xlabel("environments trained on")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("mean score (0 random, 100 reference)")
    panels[0].legend(fontsize=8, loc="lower left")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main() -> None:
    """Train, evaluate, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Datasets of the environments.")
    parser.add_argument(
        "--recipe", type=Path, required=True, help="A recipe of ldm train, whose environments these are."
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12, help="Per environment.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="Models at a time, each on one core.")
    parser.add_argument("--page", type=Path, help="Folder for README.md and its figure.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    order = in_turns(yaml.safe_load(options.recipe.read_text(encoding="utf-8"))["environments"])
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(lambda cell: measure(cell, order, options), cells(options.seeds)))
    print_table("scores", COLUMNS, [row(cell, order) for cell in found])
    write_json(options.json, {"cells": found})
    if options.page is not None:
        write_page(found, order, options.page, options.steps)


if __name__ == "__main__":
    main()
