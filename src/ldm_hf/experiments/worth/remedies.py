"""``python -m ldm_hf.experiments.worth.remedies``: what makes pretraining worth more, one change at a time, in small models.

Each remedy is a way to pretrain and a way to fine-tune on the same few episodes of held-out environments, and is played in
one or several ways on the same evaluation episodes. A cell (remedy, environment, seed) is a file in the output folder; the
command run again makes those that are missing.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import torch
import typer

from ldm_hf.cli.main import run_command
from ldm_hf.dataset_builder.format.reader import open_datasets
from ldm_hf.evaluation.players import ModelPlayer, Player
from ldm_hf.evaluation.protocol import Protocol
from ldm_hf.evaluation.rollout import roll_out
from ldm_hf.experiments.worth.tasks import HELD_OUT
from ldm_hf.finetuning.episodes import read_episodes, recorded_episodes
from ldm_hf.finetuning.finetune import FineTuning, finetune
from ldm_hf.hub.pretrained import load_pretrained
from ldm_hf.modeling import LDMConfig, LDMModel, LDMPolicy, LDMProcessor
from ldm_hf.modeling.spaces_ldm import Transitions
from ldm_hf.training.config import TrainingConfig
from ldm_hf.training.datasets import training_datasets
from ldm_hf.training.loop import train
from ldm_hf.utils.dependencies import require
from ldm_hf.utils.files import remove, replacing

PRETRAINING: dict[str, Any] = {
    "model": "nano",
    "model_overrides": {"max_position_embeddings": 256},
    "context_length": 256,
    "max_steps": 1500,
    "train_batch_size": 16,
    "learning_rate": 1e-3,
    "warmup_steps": 50,
    "decay_fraction": 0.5,
    "bf16": False,
    "cache_gib": 1.0,
    "save_steps": 500,
    "logging_steps": 20,
    "report_to": "none",
}
"""Settings of pretraining that all have in common: 6 million transitions."""

TUNING: dict[str, Any] = {
    "context_length": 128,
    "train_batch_size": 8,
    "max_steps": 150,
    "early_stopping_patience": 4,
    "bf16": False,
    "save_steps": 1000,
    "save_total_limit": 1,
    "report_to": "none",
}
"""Settings of fine-tuning, over the defaults of ``ldm finetune``, that all have in common: what two cores can pay for."""

ENVIRONMENTS = HELD_OUT["ldm-mini"].environments
EPISODES = 5
PROTOCOL = Protocol(episodes=5, rollouts=4)
_FEW = 15  # environments, of the model that is trained on few


@dataclass(frozen=True)
class Remedy:
    """A way to pretrain and to fine-tune.

    Attributes:
        model: name of the pretraining, None for weights as they are before any.
        pretraining: settings of it, over ``PRETRAINING``.
        environments: how many it is trained on; None is all.
        tuning: settings of fine-tuning, over ``TUNING``.
        plays: the ways to play, of ``PLAYS``.
    """

    model: str | None
    pretraining: Mapping[str, Any] = field(default_factory=dict)
    environments: int | None = None
    tuning: Mapping[str, Any] = field(default_factory=dict)
    plays: Sequence[str] = ("greedy",)


PLAYS = ("greedy", "sampled", "demonstrations first")
"""Ways to play: greedy actions; sampled ones; greedy ones with the demonstrations in the context from the start."""

_AUGMENTED = {"augmentation": 0.75}
_LONG = {"model_overrides": {"max_position_embeddings": 1024}, "context_length": 1024, "train_batch_size": 4}
REMEDIES = {
    "random weights": Remedy(None, plays=PLAYS),
    "pretrained": Remedy("plain", plays=PLAYS),
    "augmentation": Remedy("augmented", _AUGMENTED, plays=PLAYS),
    "augmentation, also in fine-tuning": Remedy(
        "augmented", _AUGMENTED, tuning={"augmentation": 0.5}, plays=("greedy", "demonstrations first")
    ),
    "embedding and head at random": Remedy("plain", tuning={"reinitialize": ["embedding", "action_head"]}),
    "fewer environments": Remedy("few", environments=_FEW),
    "four times the context": Remedy("long", _LONG, plays=("greedy", "demonstrations first")),
}


@dataclass(frozen=True)
class Cell:
    """One thing to measure: a remedy, on an environment's episodes, with a seed."""

    remedy: str
    environment: str
    seed: int

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.environment.replace('/', '--')}_{self.remedy.replace(',', '').replace(' ', '-')}_{self.seed}"


class DemonstratedPlayer:
    """A model that begins every rollout with demonstrations in its context: half of it at most, so that it can act."""

    def __init__(self, model: LDMModel, processor: LDMProcessor, demonstrations: Transitions) -> None:
        self._model, self._processor = model, processor
        self._demonstrations = demonstrations[-(model.config.max_position_embeddings // 2) :]

    def start(self, envs: Sequence[gymnasium.Env]) -> LDMPolicy:
        """The policy of a batch of environments of one kind, which were reset."""
        policy = LDMPolicy(self._model, self._processor, envs)
        policy.remember(self._demonstrations)
        return policy

    def check(self, env: gymnasium.Env, observation: Any) -> None:
        """Raise if it cannot act there."""
        ModelPlayer(self._model, self._processor).check(env, observation)


def pretrained(name: str, data: Path, output: Path) -> Path:
    """The folder of a pretrained model, trained if it is not there; environments of the benchmark are held out."""
    remedy = next(remedy for remedy in REMEDIES.values() if remedy.model == name)
    folder = output / "models" / name
    if (folder / "model").is_dir():
        return folder / "model"
    settings = {**PRETRAINING, **remedy.pretraining, "data": str(data), "output_dir": str(folder)}
    known = [one.environment for one in training_datasets(TrainingConfig.from_mapping(settings))]
    environments = sorted(set(known) - set(ENVIRONMENTS))
    if remedy.environments is not None:
        environments = sorted(np.random.default_rng(0).permutation(environments)[: remedy.environments].tolist())
    done = train(TrainingConfig.from_mapping({**settings, "environments": environments}))
    if done is None:
        raise SystemExit(143)
    return done


def untrained(seed: int, output: Path) -> Path:
    """The folder of a model of the same architecture, with weights as they are before any training."""
    folder = output / "models" / f"untrained-{seed}"
    if not folder.is_dir():
        config = LDMConfig.preset(PRETRAINING["model"], **PRETRAINING["model_overrides"])
        torch.manual_seed(seed)
        with replacing(folder) as temporary:
            LDMModel(config).save_pretrained(temporary)
            LDMProcessor.for_config(config).save_pretrained(temporary)
    return folder


def measure(cell: Cell, data: Path, output: Path) -> dict[str, Any]:
    """Fine-tune and play: the returns of each way to play, and what it took."""
    remedy, started = REMEDIES[cell.remedy], time.monotonic()
    model = untrained(cell.seed, output) if remedy.model is None else pretrained(remedy.model, data, output)
    folder = output / "tuned" / cell.name
    tuning = FineTuning(str(model), cell.environment, EPISODES, str(data))
    done = finetune(tuning, folder, {**TUNING, **remedy.tuning, "seed": cell.seed})
    if done is None:
        raise SystemExit(143)
    learned = time.monotonic() - started
    returns = {}
    for play in remedy.plays:
        (result,) = roll_out(_player(play, done, folder / "data", cell.environment), [cell.environment], PROTOCOL)
        if result.failure is not None:
            raise result.failure
        returns[play] = result.returns
    remove(folder)
    return {**vars(cell), "returns": returns, "seconds": round(learned, 1)}


def _player(play: str, folder: Path, data: Path, environment: str) -> Player:
    model, processor = load_pretrained(folder)
    if play != "demonstrations first":
        return ModelPlayer(model, processor, temperature=float(play == "sampled"))
    (dataset,) = open_datasets(str(data), [environment])
    episodes = [episode for episode in recorded_episodes([dataset]) if episode.stream == 0]
    return DemonstratedPlayer(model, processor, read_episodes([dataset], episodes)[0])


def run(
    data: Annotated[Path, typer.Option(help="Folder of datasets of the references.")],
    output: Annotated[Path, typer.Option(help="Folder for models and results.")] = Path("runs/remedies"),
    remedy: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: all.")] = None,
    environment: Annotated[list[str] | None, typer.Option(help="Id; repeatable. Default: the ten held out.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each cell.")] = 3,
) -> None:
    """Measure what changes of pretraining, fine-tuning and playing are worth, each by itself."""
    require("the benchmark of worth", "build", "train")
    cells = [
        Cell(name, one, seed)
        for name in remedy or REMEDIES
        for seed in range(seeds)
        for one in environment or ENVIRONMENTS
    ]
    for number, cell in enumerate(cells, start=1):
        path = output / "cells" / f"{cell.name}.json"
        if path.is_file():
            continue
        found = measure(cell, data, output)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(found) + "\n", encoding="utf-8")
        means = ", ".join(f"{play} {np.mean(np.concatenate(all_)):.4g}" for play, all_ in found["returns"].items())
        typer.echo(f"{number}/{len(cells)} {cell.name}: {means}, {found['seconds']:g} s", err=True)


if __name__ == "__main__":
    single = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    single.command()(run)
    run_command(single)
