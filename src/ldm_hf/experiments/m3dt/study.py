"""Whether experts help as tasks grow (M3DT, arXiv 2505.24378): dense models and experts on more and more environments.

    python -m ldm_hf.experiments.m3dt.study --data runs/corpus --output runs/experts-study --jobs 4 --json figures.json

For each number of environments (the first ones of a fixed shuffled order, so that each set holds the one before) and each
seed, trained for the same number of steps per environment and all evaluated by the same rollouts:

- `backbone`: the model after the first stage, from which all experts of this row start;
- `dense`: the same model, trained for the steps of all three stages;
- `continued`: the backbone, all of whose weights are trained on for the steps of the other stages;
- `wide-N`: a dense model of as many parameters as with N experts, for the same steps;
- `random-N`, `gradient-N`, `direction-N`: N experts on random groups, on groups by gradients and by their directions, all
  three stages; all experts together see as many transitions as the dense model in the same steps;
- `random-N-own` and so on: the same after the second stage, the expert of an environment's group only: what routers that
  always chose it would make of the experts. Losses only.

Whatever has been made is in its folder under `--output` and is only read when the command is run again; trainings that
were interrupted continue. `ldm_hf.experiments.m3dt.study_page` makes a page and a plot of what `--json` holds. Scores are
0 at the reference run's first episodes and 100 at its deterministic policy; references that did not get better have none.
Losses, which still differ where scores have reached 100, are the cross-entropy of the recorded actions, on sequences that
are the same for all.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoModel, AutoProcessor
from transformers.utils.logging import disable_progress_bar

from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.evaluation.known_references import ReferenceOfData
from ldm_hf.experiments.figures import print_table, write_json
from ldm_hf.modeling import LDMConfig, LDMModel, LDMProcessor
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.loop import make_mixture
from ldm_hf.training.mixture import Mixture

GROUPINGS = ("random", "gradient", "direction")
_LOSS_SEED = 1_000_003
_LOSS_SEQUENCES, _LOSS_AT_ONCE = 64, 16  # of an environment

Measured = dict[str, tuple[float | None, float]]
"""The score, if there is one, and the loss of each environment."""


@dataclass(frozen=True)
class Study:
    """One set of environments and one seed: what its variants share.

    Attributes:
        environments: their ids.
        seed: of every training.
        options: of the command line.
    """

    environments: tuple[str, ...]
    seed: int
    options: argparse.Namespace

    @property
    def folder(self) -> Path:
        """Where its variants are."""
        return self.options.output / f"{len(self.environments)}-environments" / f"seed-{self.seed}"

    def variants(self) -> list[str]:
        """Names; experts that would be without an environment are left out."""
        numbers = [number for number in self.options.experts if number <= len(self.environments)]
        grouped = [f"{grouping}-{{}}{own}" for grouping in GROUPINGS for own in ("", "-own")]
        return [
            "backbone",
            "dense",
            "continued",
            *(kind.format(number) for number in numbers for kind in ("wide-{}", *grouped)),
        ]

    def measure(self, variant: str) -> Measured:
        """Train and evaluate, unless that was done."""
        stages = list(self.stages(variant))
        for folder, settings in stages:
            if not (folder / "finished").exists():
                self.train(folder, settings)
        folder = stages[-1][0]
        if not variant.endswith("-own"):
            return self.evaluate(folder, self.environments)
        groups = json.loads((folder / "groups.json").read_text())["groups"]
        each = [self.losses(folder / f"expert-{index}", group) for index, group in enumerate(groups)]
        return {name: (None, loss) for losses in each for name, loss in losses.items()}

    def evaluate(self, folder: Path, environments: Sequence[str]) -> Measured:
        """Roll a training's model out, and compute its losses, unless that was done."""
        report = folder / "evaluation" / "report.json"
        if not report.exists():
            chosen = [word for environment in environments for word in ("--environment", environment)]
            arguments = ("--data", self.options.data, "--output", report.parent, "--episodes", self.options.episodes)
            _ldm(folder, "evaluate", folder / "model", *arguments, *chosen)
        results = json.loads(report.read_text())["environments"]
        failures = [f"{result['id']}: {result['failure']}" for result in results if result["failure"]]
        if failures:
            report.unlink()  # to be made again
            raise SystemExit("\n".join(failures))
        losses = self.losses(folder, environments)
        return {result["id"]: (_score(result), losses[result["id"]]) for result in results}

    def losses(self, folder: Path, environments: Sequence[str]) -> dict[str, float]:
        """The loss of each environment, in nats for each number of an action."""
        path = folder / "losses.json"
        if not path.exists():
            model, processor = (each.from_pretrained(folder / "model") for each in (AutoModel, AutoProcessor))
            config = TrainingConfig(str(self.options.data), str(folder), seed=_LOSS_SEED, cache_gib=0.1)
            losses = {
                each.environment: _loss(model.eval(), make_mixture([each], config, model, processor), processor)
                for each in open_datasets(self.options.data, list(environments))
            }
            path.write_text(json.dumps(losses))
        return json.loads(path.read_text())

    def stages(self, variant: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The trainings that make a variant, in order: folder and settings that are its own."""
        steps = [count * len(self.environments) for count in self.options.steps]
        backbone = self.folder / "backbone"
        kind, number, own = (*variant.split("-"), "", "")[:3]
        if kind in ("dense", "wide"):
            width = {"intermediate_size": self.wide(int(number))} if number else {}
            shape = {**self.options.overrides, **width}
            yield self.folder / variant, {"max_steps": sum(steps), "model_overrides": shape}
            return
        yield backbone, {"max_steps": steps[0], "model_overrides": self.options.overrides}
        if kind == "continued":
            yield self.folder / variant, {"model": str(backbone / "model"), "max_steps": steps[1] + steps[2]}
        if number:
            # An expert has a share of the environments, and so of the batch: of each environment, all see as much as dense.
            share = max(1, self.options.batch_size // int(number))
            made = {"stage": "experts", "num_experts": int(number), "grouping": kind, "train_batch_size": share}
            experts = self.folder / f"{kind}-{number}" / "experts"
            yield experts, {**made, "model": str(backbone / "model"), "max_steps": steps[1]}
            if own:
                return
            routers = {"stage": "routers", "model": str(experts / "model"), "max_steps": steps[2]}
            yield self.folder / variant / "routers", routers

    def wide(self, number: int) -> int:
        """The width of feed-forward layers with which a dense model has as many parameters as one with so many experts."""
        preset, overrides = self.options.model, self.options.overrides
        with torch.device("meta"):
            wanted = LDMModel(LDMConfig.preset(preset, **overrides, num_experts=number)).num_parameters()
            dense = LDMModel(LDMConfig.preset(preset, **overrides))
        shape = dense.config
        column = 3 * shape.num_hidden_layers * shape.hidden_size
        return shape.intermediate_size + round((wanted - dense.num_parameters()) / column)

    def train(self, folder: Path, settings: dict[str, Any]) -> None:
        """Run or continue with a training; the mark that it is finished comes last."""
        shared = {
            "data": str(self.options.data),
            "output_dir": str(folder),
            "environments": list(self.environments),
            "model": self.options.model,
            "train_batch_size": self.options.batch_size,
            "learning_rate": self.options.learning_rate,
            "warmup_steps": settings["max_steps"] // 10,
            "decay_fraction": 0.5,
            "save_steps": 100,
            "save_total_limit": 1,
            "seed": self.seed,
            "report_to": "none",
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.yaml").write_text(yaml.safe_dump({**shared, **settings}))
        if "stage" in settings:
            _ldm(folder, "--config", folder / "settings.yaml", "--jobs", 1, module="ldm_hf.experiments.m3dt")
        else:
            _ldm(folder, "train", "--config", folder / "settings.yaml")
        (folder / "finished").touch()


@torch.inference_mode()
def _loss(model: LDMModel, mixture: Mixture, processor: LDMProcessor) -> float:
    numbers = range(_LOSS_SEQUENCES)
    transitions = sum(map(mixture.length, numbers))
    loss = 0.0
    for start in numbers[::_LOSS_AT_ONCE]:
        batch = processor.collate([mixture[number] for number in numbers[start : start + _LOSS_AT_ONCE]])
        loss += model(**batch, num_items_in_batch=transitions).loss.item()
    return loss


def _score(result: dict[str, Any]) -> float | None:
    score = result["deterministic_score"]
    return None if score is None else 100 * float(np.clip(score, 0, 1))


def _ldm(folder: Path, *arguments: object, module: str = "ldm_hf") -> None:
    with (folder / "log.txt").open("a") as log:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        subprocess.run(command, stdout=log, stderr=log, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def environments_of(options: argparse.Namespace) -> list[str]:
    """Ids in the order in which they are added: those given, or all of the data whose episodes are short, shuffled."""
    if options.environments:
        return options.environments
    datasets = open_datasets(options.data)
    found = [one.environment for one in datasets if ReferenceOfData(one).expected_length <= options.longest]
    return [found[index] for index in np.random.default_rng(0).permutation(len(found))]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Datasets that `ldm build` made.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--environments", nargs="+", help="In the order in which they are added; default: shuffled.")
    parser.add_argument("--longest", type=float, default=300, help="Mean transitions of an episode, of these.")
    parser.add_argument("--counts", type=int, nargs="+", default=[4, 8, 16], help="Numbers of environments.")
    parser.add_argument("--experts", type=int, nargs="+", default=[4, 8], help="Numbers of experts.")
    parser.add_argument("--model", default="nano", choices=LDMConfig.presets())
    parser.add_argument("--overrides", type=yaml.safe_load, default={}, help="Fields of the model, in YAML.")
    parser.add_argument("--steps", type=int, nargs=3, default=[20, 10, 10], help="Of the stages, for each environment.")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="Variants at a time, each on one core.")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Train, evaluate and print."""
    options = arguments()
    disable_progress_bar()  # of the loading of weights
    order = environments_of(options)
    counts = [count for count in options.counts if count <= len(order)]
    studies = {
        (count, seed): Study(tuple(sorted(order[:count])), seed, options)
        for count in counts
        for seed in range(options.seeds)
    }
    jobs = [(key, variant) for key, study in studies.items() for variant in study.variants()]
    results: dict[Any, Measured] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for wanted in range(3):  # of a set, what others start from comes before them
            chosen = [job for job in jobs if _phase(job[1]) == wanted]
            results |= zip(chosen, pool.map(lambda job: studies[job[0]].measure(job[1]), chosen), strict=True)
    figures: dict[str, dict[str, dict[str, Any]]] = {"scores": {}, "losses": {}}
    for count in counts:
        rows = []
        for variant in studies[count, 0].variants():
            found = [results[(count, seed), variant] for seed in range(options.seeds)]
            losses = {name: [each[name][1] for each in found] for name in found[0]}
            figures["losses"].setdefault(str(count), {})[variant] = losses
            if variant.endswith("-own"):
                continue
            scores = {name: [each[name][0] for each in found] for name in found[0]}
            figures["scores"].setdefault(str(count), {})[variant] = scores
            means = np.nanmean(np.array(list(scores.values()), dtype=float), 0)
            rows.append([variant, f"{means.mean():.1f}", *(f"{mean:.1f}" for mean in means)])
        columns = ["variant", "mean", *(f"seed {seed}" for seed in range(options.seeds))]
        print_table(f"{count} environments, {options.seeds} seeds", columns, rows)
    told = (
        "counts",
        "experts",
        "model",
        "overrides",
        "steps",
        "batch_size",
        "learning_rate",
        "seeds",
        "episodes",
        "longest",
    )
    settings = {name: str(getattr(options, name)) for name in told}
    write_json(options.json, {"settings": settings, "order": order[: max(counts)], **figures})


def _phase(variant: str) -> int:
    return 0 if variant == "backbone" else 2 if variant.endswith("-own") else 1


if __name__ == "__main__":
    main()
