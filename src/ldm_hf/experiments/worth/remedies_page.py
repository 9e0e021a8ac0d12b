"""The page of what ``python -m ldm_hf.experiments.worth.remedies`` measured.

python -m ldm_hf.experiments.worth.remedies_page runs/remedies runs/references docs/results/worth/remedies.md
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ldm_hf.experiments.worth.page import Scale, Score, read_scales
from ldm_hf.experiments.worth.remedies import EPISODES, PLAYS, REMEDIES
from ldm_hf.experiments.worth.tasks import UNKNOWN, in_order
from ldm_hf.utils.files import replacing

Row = tuple[str, str]
"""A remedy and a way to play."""

_BASELINE: Row = ("random weights", PLAYS[0])
_SHORT = {"greedy": "", "sampled": ", sampled actions", "demonstrations first": ", demonstrations in the context"}


def read(folder: Path, scales: Mapping[str, Scale]) -> dict[Row, dict[str, Score]]:
    """Scores by remedy and way to play, then by environment; one value for each seed."""
    values: dict[Row, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((folder / "cells").glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        scale = scales[cell["environment"]]
        for play, returns in cell["returns"].items():
            score = scale.place(float(np.mean(np.concatenate(returns))))
            values[cell["remedy"], play][cell["environment"]].append((score, cell["seconds"]))
    return {
        row: {
            name: Score(np.array([one for one, _ in found]), float(np.median([each for _, each in found])), 0.0)
            for name, found in environments.items()
        }
        for row, environments in values.items()
    }


def page(scores: Mapping[Row, Mapping[str, Score]]) -> str:
    """Markdown: each remedy beside random weights, then each environment."""
    rows = [(remedy, play) for remedy in REMEDIES for play in PLAYS if (remedy, play) in scores]
    seeds = {len(score.values) for found in scores.values() for score in found.values()}
    lines = [
        "# Remedies: what makes pretraining worth more",
        "",
        "Made by `python -m ldm_hf.experiments.worth.remedies_page`; [worth.md](../../worth.md) says what was done. Each "
        f"row is a small model, fine-tuned on {EPISODES} episodes, on {min(seeds)} to {max(seeds)} seeds. Scores: 0 % is a "
        "random policy, 100 % the reference; ± is half of a 95 % confidence interval over seeds. *Higher* and *apart* "
        "count environments whose mean is above that of random weights, playing greedily, and those whose "
        "intervals do not overlap.",
        "",
        "| remedy | environments | higher | apart, higher | apart, lower | median score | of them solved (90 %) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    base = scores[_BASELINE]
    for row in rows:
        both = sorted(set(scores[row]) & set(base))
        pairs = [(scores[row][name], base[name]) for name in both]
        higher = sum(one.mean > other.mean for one, other in pairs)
        apart = [one.mean > other.mean for one, other in pairs if one.is_apart_from(other)]
        means = [one.mean for one, _ in pairs]
        counted = ["", "", ""] if row == _BASELINE else [str(higher), str(sum(apart)), str(len(apart) - sum(apart))]
        solved = sum(mean >= 0.9 for mean in means)
        lines.append(
            f"| {row[0]}{_SHORT[row[1]]} | {len(both)} | {' | '.join(counted)} | {np.median(means):.0%} | {solved} |"
        )
    lines += ["", "## By environment", ""]
    names = in_order({name for found in scores.values() for name in found})
    lines.append("| remedy | " + " | ".join(f"`{name}`{' ᵘ' if name in UNKNOWN else ''}" for name in names) + " |")
    lines.append("|---|" + "---:|" * len(names))
    for row in rows:
        cells = [_cell(scores[row][name]) if name in scores[row] else "" for name in names]
        lines.append(f"| {row[0]}{_SHORT[row[1]]} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "ᵘ of a library that the models do not know.", ""])


def _cell(score: Score) -> str:
    half = f" ± {100 * score.half:.0f}" if np.isfinite(score.half) else ""
    return f"{score.mean:.0%}{half}"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="Folder of the remedies.")
    parser.add_argument("data", type=Path, help="Folder of datasets of the references.")
    parser.add_argument("output", type=Path, help="Markdown file to write.")
    options = parser.parse_args()
    scores = read(options.results, read_scales(options.data))
    with replacing(options.output) as temporary:
        temporary.write_text(page(scores), encoding="utf-8")


if __name__ == "__main__":
    main()
