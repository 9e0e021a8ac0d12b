"""What racing is worth: references that races make beside those of the paper's ranking, for as much time of a core.

    python -m ldm_hf.experiments.races --output runs/races --json figures.json

For each seed ``ldm build --budget small`` ranks candidates on three of the environments, trains the best three on each, and
takes some time of a core, that of all its processes. ``ldm build --core-minutes`` then races on the same environments for
as much. Of each environment the run that is kept counts: its deterministic episodes, on seeds that chose nothing, as a share
of the way from a random policy to known good. One that curation dropped, or that is degenerate, has the share 0. Random and
trivial policies are played before either.

Builds that are finished are only read when the command is run again; one that was interrupted resumes, and one that was
killed is begun again, because the time that it had taken is not known.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ldm_hf.dataset_builder.anchors.anchors import measure_anchors
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.errors import DatasetFormatError
from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.utils.files import remove, replacing

ENVIRONMENTS = (
    "gymnasium/Acrobot-v1",
    "gymnasium/CartPole-v1",
    "gymnasium/FrozenLake8x8-v1",
    "gymnasium/HalfCheetah-v5",
    "gymnasium/InvertedDoublePendulum-v5",
    "gymnasium/LunarLander-v3",
    "gymnasium/MountainCar-v0",
    "gymnasium/MountainCarContinuous-v0",
    "gymnasium/Pendulum-v1",
    "gymnasium/Taxi-v4",
)
"""Fixed before any was built: discrete and continuous, sparse and dense rewards, all with a known good score."""

WAYS = ("ranking", "racing")


@dataclass(frozen=True)
class Reference:
    """What a build made of an environment.

    Attributes:
        run: name of the run that is kept; empty where none is.
        mean_return: of its deterministic episodes.
        share: of the way from random to known good, from 0 to 1; 0 without a run, and of one that is degenerate.
        solved: whether it solves the environment.
        flags: why it is degenerate.
    """

    run: str = ""
    mean_return: float | None = None
    share: float = 0.0
    solved: bool = False
    flags: tuple[str, ...] = ()


def build(output: Path, environments: Sequence[str], options: Sequence[str]) -> float:
    """Run ``ldm build`` on one core, or let it resume; seconds that all its processes used a core, since it began."""
    record = output / "core_seconds.json"
    seconds, is_done = json.loads(record.read_text(encoding="utf-8")) if record.exists() else (0.0, False)
    if is_done:
        return float(seconds)
    if not record.exists():
        remove(output)  # what was killed before it could say how long it had taken
        output.mkdir(parents=True)
    before = _children_seconds()
    command = [sys.executable, "-m", "ldm_hf", "build", *environments, "--jobs", "1", "--output", str(output), *options]
    try:
        with (output / "log.txt").open("a") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        is_done = True
    finally:
        seconds += _children_seconds() - before
        with replacing(record) as temporary:
            temporary.write_text(json.dumps([round(seconds, 1), is_done]), encoding="utf-8")
    return seconds


def references(output: Path, environments: Sequence[str]) -> dict[str, Reference]:
    """What a build kept of each environment."""
    try:
        kept = {dataset.environment: dataset.info for dataset in open_datasets(output)}
    except DatasetFormatError:  # nothing was kept
        kept = {}
    found = {}
    for environment in environments:
        info = kept.get(environment)
        if info is None or info.assessment is None:
            found[environment] = Reference()
            continue
        mean = float(np.mean(info.deterministic_returns))
        anchors = info.assessment.anchors
        share = 0.0 if info.flags else float(np.clip(anchors.share(mean) or 0.0, 0, 1))
        solved = bool(anchors.solved(mean, info.assessment.successes)) and not info.flags
        found[environment] = Reference(info.run, mean, share, solved, tuple(info.flags))
    return found


def compare(
    output: Path, environments: Sequence[str], seed: int
) -> tuple[dict[str, float], dict[str, dict[str, Reference]]]:
    """Build in both ways with a seed: core minutes of an environment, and the references, by the way."""
    folders = {way: output / f"{way}-{seed}" for way in WAYS}
    seconds = {"ranking": build(folders["ranking"], environments, ["--budget", "small", "--seed", str(seed)])}
    minutes = seconds["ranking"] / 60 / len(environments)
    seconds["racing"] = build(
        folders["racing"], environments, ["--core-minutes", f"{minutes:.2f}", "--seed", str(seed)]
    )
    per_environment = {way: used / 60 / len(environments) for way, used in seconds.items()}
    return per_environment, {way: references(folders[way], environments) for way in WAYS}


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cell(reference: Reference) -> str:
    if not reference.run:
        return "none"
    marks = "flagged" if reference.flags else f"{reference.share:.0%}{' solved' if reference.solved else ''}"
    return f"{reference.mean_return:.4g} ({marks})"


def main() -> None:
    """Build, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--environments", nargs="+", default=list(ENVIRONMENTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for environment in options.environments:
        measure_anchors(environment)
    found = [compare(options.output, options.environments, seed) for seed in range(options.seeds)]
    columns = ["environment", *(f"{way}, seed {seed}" for seed in range(options.seeds) for way in WAYS)]
    rows = [
        [environment, *(_cell(made[way][environment]) for _, made in found for way in WAYS)]
        for environment in options.environments
    ]
    figures: dict[str, object] = {}
    for way in WAYS:
        made = [reference for _, each in found for reference in each[way].values()]
        figures[way] = {
            "core_minutes": float(np.mean([minutes[way] for minutes, _ in found])),
            "kept": sum(bool(reference.run) for reference in made) / options.seeds,
            "without_flag": sum(bool(reference.run and not reference.flags) for reference in made) / options.seeds,
            "solved": sum(reference.solved for reference in made) / options.seeds,
            "mean_share": float(np.mean([reference.share for reference in made])),
            "references": [{name: asdict(one) for name, one in each[way].items()} for _, each in found],
        }
    print_table("deterministic return, share of the way to known good", columns, rows)
    names = ("core_minutes", "kept", "without_flag", "solved", "mean_share")
    summary = [[name, *(f"{figures[way][name]:.3g}" for way in WAYS)] for name in names]  # type: ignore[index]
    print_table(f"{len(options.environments)} environments, means of {options.seeds} seeds", ["", *WAYS], summary)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
