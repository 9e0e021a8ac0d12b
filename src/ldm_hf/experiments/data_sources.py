"""What a model learns from rollouts of final policies, beside what it learns from their whole training.

    python -m ldm_hf.experiments.data_sources --whole runs/bank --bank bank --output runs/data-sources --json figures.json

The paper records everything from the first step of training; ``ldm build --from-bank`` rolls out the final policy, with
noise of several levels. Both are labelled by the final policy. Here the same policies come with both: ``--whole`` holds data
folders of ``ldm build``, whose runs became entries of the bank. One environment of each library, the first by name, is taken
until there are eight; rollouts have as many transitions as the whole training, at most 100,000. Models of the preset
``nano`` then train on either for as many steps, and play the same episodes. Scores are 0 at a random policy and 100 at the
deterministic reference. What is finished is only read when the command is run again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm_hf.dataset_builder.bank.bank import read_bank
from ldm_hf.dataset_builder.bank.rollout_request import ROLLOUTS_OF
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.errors import ConfigError, DatasetFormatError, UnknownEnvironmentError
from ldm_hf.experiments.commands import run_ldm, score
from ldm_hf.experiments.figures import print_table, write_json

WAYS = ("whole training", "rollouts")
ENVIRONMENTS = 8
MOST_TRANSITIONS = 100_000  # of rollouts: what `ldm build --from-bank` makes by default


@dataclass(frozen=True)
class Whole:
    """The whole training of a policy: where its data lie, and what they are."""

    folder: Path
    environment: str
    run: str
    transitions: int


def choose(found: Sequence[Whole], banked: Mapping[str, str], number: int) -> list[Whole]:
    """Those whose run is the bank's, the first by name of each library, as many as are wanted.

    Args:
        found: whole training runs.
        banked: the run of each environment of the bank.
        number: how many.
    """
    chosen: dict[str, Whole] = {}
    for each in sorted(found, key=lambda each: each.environment):
        if banked.get(each.environment) == each.run:
            chosen.setdefault(EnvironmentId.parse(each.environment).library, each)
    return list(chosen.values())[:number]


def find(folder: Path) -> list[Whole]:
    """The training runs of all data folders in a folder; what is itself made of rollouts is left out."""
    found: list[Whole] = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            datasets = open_datasets(str(place))
        except (DatasetFormatError, UnknownEnvironmentError):  # none of its runs was kept
            continue
        found += [
            Whole(place, each.environment, each.info.run, each.num_transitions)
            for each in datasets
            if not each.info.source.startswith(ROLLOUTS_OF)
        ]
    return found


def _make_rollouts(chosen: Sequence[Whole], bank: Path, output: Path) -> Path:
    """Rollouts of each policy, as many transitions as its training had, within reason."""
    folder = output / "rollouts"
    output.mkdir(parents=True, exist_ok=True)
    for each in chosen:
        amount = ("--transitions", min(each.transitions, MOST_TRANSITIONS), "--jobs", 1)
        run_ldm(output, "build", each.environment, "--from-bank", bank, *amount, "--output", folder)
    return folder


def measure(way: str, seed: int, chosen: Sequence[Whole], options: argparse.Namespace) -> dict[str, float]:
    """Train and evaluate a model, unless that was done; the score of each environment, from 0 to 1."""
    folder = options.output / f"{way.replace(' ', '-')}-{seed}"
    report = folder / "evaluation" / "report.json"
    if not report.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rollouts = options.output / "rollouts"
        environments = [word for each in chosen for word in ("--environments", each.environment)]
        settings = {
            **{
                "model": "nano",
                "max_steps": options.steps,
                "train_batch_size": 32,
                "learning_rate": 1e-3,
                "seed": seed,
            },
            **{"warmup_steps": 50, "decay_fraction": 0.5, "bf16": "false", "report_to": "none", "save_steps": 500},
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        data = json.dumps([str(rollouts)] if way == "rollouts" else sorted({str(each.folder) for each in chosen}))
        named = json.dumps([each.environment for each in chosen])
        run_ldm(folder, "train", "--data", data, "--environments", named, "--output_dir", folder, *words)
        played = ("--data", rollouts, "--episodes", options.episodes, "--rollouts", 2, *environments)
        run_ldm(folder, "evaluate", folder / "model", "--output", report.parent, *played)
    results = json.loads(report.read_text(encoding="utf-8"))["environments"]
    return {result["id"]: score(result) for result in results}


def main() -> None:
    """Roll out, train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", type=Path, required=True, help="Data folders of ldm build, in one folder.")
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2, help="Models at a time, each on one core.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    banked = {entry.info.environment: entry.info.run for entry in read_bank(options.bank)}
    chosen = choose(find(options.whole), banked, ENVIRONMENTS)
    if not chosen:
        raise ConfigError(f"{options.whole} holds no training run of a policy of {options.bank}")
    _make_rollouts(chosen, options.bank, options.output)
    cells = [(way, seed) for seed in range(options.seeds) for way in WAYS]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(lambda cell: measure(cell[0], cell[1], chosen, options), cells)
        found = dict(zip(cells, results, strict=True))
    columns = ("environment", "transitions", *(f"{way}, seed {seed}" for way, seed in cells))
    rows = [
        [each.environment, f"{each.transitions:,}", *(f"{100 * found[cell][each.environment]:.0f}" for cell in cells)]
        for each in chosen
    ]
    means = [f"{100 * float(np.mean(list(found[cell].values()))):.1f}" for cell in cells]
    print_table("scores", columns, [*rows, ["mean", "", *means]])
    write_json(options.json, {f"{way}, seed {seed}": scores for (way, seed), scores in found.items()})


if __name__ == "__main__":
    main()
