"""What each choice of the loss and of the data's order is worth: the same training with one thing changed, by its scores.

    python -m ldm_hf.experiments.ablations --data runs/corpus --output runs/ablations --jobs 4 --json figures.json

Every variant trains on the same environments for the same steps, is evaluated by the paper's protocol, and keeps both in
its folder under ``--output``: run again, finished ones are only read. Scores are 0 at the reference run's first episodes and
100 at its deterministic policy, the one that the labels come from: the paper's 100 is reached by all too soon.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ldm_hf.experiments.commands import run_ldm
from ldm_hf.experiments.figures import print_table, write_json

ENVIRONMENTS = (
    "bsuite/bsuite/catch-v0",
    "gym-classics/WindyGridworld-v0",
    "gymnasium/Acrobot-v1",
    "gymnasium/CartPole-v1",
    "gymnasium/CliffWalking-v1",
    "gymnasium/InvertedPendulum-v5",
    "gymnasium/MountainCarContinuous-v0",
    "gymnasium/Pendulum-v1",
)

PAPER = {
    "mask_training_logits": False,
    "wave_embedding": False,
    "action_quantization": "mu_law",
    "action_smoothing": 0.0,
}
BASE = {"mask_training_logits": True, "wave_embedding": True, "action_quantization": "mu_law", "action_smoothing": 0.0}

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "paper": {"model_overrides": PAPER},
    "unmasked": {"model_overrides": {"mask_training_logits": False}},
    "random start": {"model_overrides": {"wave_embedding": False}},
    "smoothing 2": {"model_overrides": {"action_smoothing": 2.0}},
    "smoothing 6": {"model_overrides": {"action_smoothing": 6.0}},
    "even": {"model_overrides": {"action_quantization": "uniform"}},
    "even, 6": {"model_overrides": {"action_quantization": "uniform", "action_smoothing": 6.0}},
    "even, 20": {"model_overrides": {"action_quantization": "uniform", "action_smoothing": 20.0}},
    "by size": {"weights": "size"},
}
"""What differs from the settings above and from ``BASE``; docs/learning.md says what each is."""


def scores_of(name: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Train and evaluate a variant, unless that was done; the score of each environment, from 0 to 1."""
    folder = options.output / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    report = folder / "evaluation" / "report.json"
    if not report.exists():
        changes = VARIANTS[name]
        settings = {
            "data": str(options.data),
            "output_dir": str(folder),
            "environments": list(ENVIRONMENTS),
            "model": "nano",
            "max_steps": options.steps,
            "train_batch_size": 32,
            "learning_rate": 1e-3,
            "warmup_steps": 50,
            "decay_fraction": 0.5,
            "seed": seed,
            "report_to": "none",
            **changes,
            "model_overrides": {**BASE, **changes.get("model_overrides", {})},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        run_ldm(folder, "train", "--config", folder / "settings.yaml")
        chosen = [word for environment in ENVIRONMENTS for word in ("--environment", environment)]
        evaluation = ("--data", options.data, "--output", report.parent, "--episodes", options.episodes, *chosen)
        run_ldm(folder, "evaluate", folder / "model", *evaluation)
    results = json.loads(report.read_text())["environments"]
    return {result["id"]: _score(result) for result in results}


def _score(result: dict[str, Any]) -> float:
    start, end = result["first10"], result["deterministic_return"]
    return float(np.clip((result["mean_return"] - start) / (end - start), 0, 1))


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Datasets that `ldm build` made.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="Variants at a time, each on one core.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jobs = [(name, seed) for seed in range(options.seeds) for name in VARIANTS]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = dict(zip(jobs, pool.map(lambda job: scores_of(job[0], job[1], options), jobs), strict=True))
    figures = {}
    rows = []
    for name in VARIANTS:
        scores = 100 * np.array([list(results[name, seed].values()) for seed in range(options.seeds)])
        by_seed = scores.mean(1)
        figures[f"{name}: score"] = float(by_seed.mean())
        figures[f"{name}: spread over seeds"] = float(by_seed.max() - by_seed.min())
        rows.append([name, f"{by_seed.mean():.1f}", *[f"{score:.0f}" for score in (*by_seed, *scores.mean(0))]])
    names = [environment.rsplit("/", 1)[1].split("-")[0][:10] for environment in ENVIRONMENTS]
    columns = ["variant", "mean", *[f"seed {seed}" for seed in range(options.seeds)], *names]
    print_table(f"{options.steps} steps of 32 x 128 transitions, {options.seeds} seeds", columns, rows)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
