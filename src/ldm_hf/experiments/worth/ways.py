"""The ways to come from a few episodes, or none, to a policy; each is played on the same evaluation episodes."""

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from ldm_hf.dataset_builder.build.race.zoo import tuned
from ldm_hf.dataset_builder.format.reader import EnvironmentDataset, open_datasets
from ldm_hf.dataset_builder.reference.candidates import pool
from ldm_hf.dataset_builder.reference.player import ReferencePlayer
from ldm_hf.dataset_builder.reference.policy import ReferencePolicy, make_model
from ldm_hf.dataset_builder.reference.run import make_environments
from ldm_hf.dataset_builder.reference.sb3_vec_env import Sb3VecEnv
from ldm_hf.evaluation.players import ModelPlayer, Player
from ldm_hf.evaluation.protocol import Protocol
from ldm_hf.evaluation.rollout import roll_out
from ldm_hf.experiments.worth.cloning import ClonerPlayer, clone
from ldm_hf.finetuning.choosing import choose_episodes
from ldm_hf.finetuning.finetune import FineTuning, finetune
from ldm_hf.hub.pretrained import load_pretrained
from ldm_hf.modeling import LDMModel
from ldm_hf.training.averaging import average_models
from ldm_hf.utils.files import remove, replacing

PRETRAINED, AVERAGED, LORA = "pretrained", "pretrained, averaged", "pretrained, LoRA"
RANDOM_WEIGHTS, MLP = "random weights", "MLP"
SB3_STEPS, SB3_TIME, ZERO_SHOT = "SB3, same steps", "SB3, same time", "zero-shot"
WAYS = (PRETRAINED, AVERAGED, LORA, RANDOM_WEIGHTS, MLP, SB3_STEPS, SB3_TIME)
"""What learns; ``ZERO_SHOT`` does not."""

_ALL_WEIGHTS: dict[str, Any] = {"report_to": "none", "save_steps": 1000, "save_total_limit": 1, "bf16": False}


@dataclass(frozen=True)
class Cell:
    """One thing to measure.

    Attributes:
        environment: id.
        episodes: recorded episodes of the reference that are learned from; 0 of ``ZERO_SHOT``.
        seed: of the episodes that are drawn, of weights, and of the order of the data.
        way: one of ``WAYS``, or ``ZERO_SHOT``.
    """

    environment: str
    episodes: int
    seed: int
    way: str

    @property
    def name(self) -> str:
        """For files."""
        way = self.way.replace(",", "").replace(" ", "-")
        return f"{self.environment.replace('/', '--')}_{way}_{self.episodes}_{self.seed}"


class Bench:
    """Makes policies of cells and plays them; keeps the model that was fine-tuned last, until it is closed.

    Args:
        model: folder of the pretrained model.
        data: folder of datasets of the references.
        output: for what is trained.
        protocol: of the evaluation, the same for all.
        settings: of fine-tuning, over its defaults.
    """

    def __init__(
        self, model: str, data: Path, output: Path, protocol: Protocol, settings: dict[str, Any] | None = None
    ) -> None:
        self._model, self._data, self._output, self._protocol = model, data, output, protocol
        self._settings = {**_ALL_WEIGHTS, **(settings or {})}
        self._tuned: Cell | None = None  # whose model is kept

    def close(self) -> None:
        """Delete the model that is kept: those of hundreds of cells would fill a disk."""
        if self._tuned is not None:
            remove(self._output / "models" / self._tuned.name)
            self._tuned = None

    def measure(self, cell: Cell, seconds: float | None = None) -> dict[str, Any]:
        """Returns of the evaluation and seconds of learning of a cell; averaging the model that is kept takes hardly any.

        Args:
            cell: which.
            seconds: of ``SB3_TIME``, how long it may learn.
        """
        started = time.monotonic()
        player, transitions = self._learn(cell, seconds)
        learned = time.monotonic() - started
        (result,) = roll_out(player, [cell.environment], self._protocol)
        if result.failure is not None:
            raise result.failure
        return {
            **vars(cell),
            "returns": result.returns,
            "transitions": transitions,
            "seconds": round(learned, 1),
            "played_seconds": round(time.monotonic() - started - learned, 1),
        }

    def _learn(self, cell: Cell, seconds: float | None) -> tuple[Player, int]:
        """What plays, and how many transitions it learned from."""
        if cell.way == ZERO_SHOT:
            return ModelPlayer(*load_pretrained(self._model)), 0
        train, held_back = self._episodes(cell)
        transitions = count_transitions(train, held_back)
        if cell.way in (SB3_STEPS, SB3_TIME):
            policy, done = self._sb3(cell, transitions if cell.way == SB3_STEPS else 10**9, seconds)
            return ReferencePlayer(policy), done
        if cell.way == MLP:
            return ClonerPlayer(clone(train, held_back, cell.seed)), transitions
        if cell.way == AVERAGED:
            tuned = self._tune(replace(cell, way=PRETRAINED))
            folder = average_models([self._model, str(tuned)], tuned.parent / "average")
        else:
            folder = self._tune(cell)
        return ModelPlayer(*load_pretrained(folder)), transitions

    def _tune(self, cell: Cell) -> Path:
        """The folder of a fine-tuned model: the one that is kept, if it is the cell's."""
        output = self._output / "models" / cell.name
        if self._tuned == cell:
            return output / "model"
        self.close()
        model = self._random_weights(cell.seed) if cell.way == RANDOM_WEIGHTS else self._model
        settings = {**self._settings, "seed": cell.seed} | ({"lora_rank": 8} if cell.way == LORA else {})
        tuning = FineTuning(str(model), cell.environment, cell.episodes, str(self._data))
        folder = finetune(tuning, output, settings)
        if folder is None:
            raise SystemExit(143)
        self._tuned = cell
        return folder

    def _episodes(self, cell: Cell) -> tuple[EnvironmentDataset, EnvironmentDataset | None]:
        """What is learned from, and what is held back: as fine-tuning chooses them."""
        folder = self._output / "episodes" / f"{cell.environment.replace('/', '--')}_{cell.episodes}_{cell.seed}"
        (dataset,) = open_datasets(str(self._data), [cell.environment])
        choose_episodes([dataset.best_run()], cell.episodes, folder, cell.seed, lambda line: None)
        (train,) = open_datasets(str(folder / "data"), [cell.environment])
        if not (folder / "validation").is_dir():
            return train, None
        return train, open_datasets(str(folder / "validation"), [cell.environment])[0]

    def _random_weights(self, seed: int) -> Path:
        """A folder of the pretrained model's architecture, with weights as they are before any training."""
        folder = self._output / "random-weights" / str(seed)
        if not folder.is_dir():
            trained, processor = load_pretrained(self._model)
            trained.config.environments = None
            torch.manual_seed(seed)
            with replacing(folder) as temporary:
                LDMModel(trained.config).save_pretrained(temporary)
                processor.save_pretrained(temporary)
        return folder

    def _sb3(self, cell: Cell, transitions: int, seconds: float | None) -> tuple[ReferencePolicy, int]:
        """A policy of the candidate that became the reference, or PPO, after ``transitions`` or ``seconds``."""
        (dataset,) = open_datasets(str(self._data), [cell.environment])
        known = {**pool(), **tuned(cell.environment)}
        named = [name for name in known if dataset.best_run().info.run.startswith(f"{name}-")]
        candidate = known[max(named, key=len)] if named else known["PPO"]
        deadline = None if seconds is None else time.monotonic() + seconds
        with contextlib.closing(Sb3VecEnv(make_environments(cell.environment, candidate.num_envs))) as venv:
            model, normalizer = make_model(venv, candidate, timesteps=transitions, seed=cell.seed)
            callback = _Stop(deadline)
            model.learn(transitions, callback=callback)
            return ReferencePolicy.of(model, candidate, normalizer), model.num_timesteps


class _Stop(BaseCallback):
    """Ends learning at a time, by ``time.monotonic``; never where there is none."""

    def __init__(self, deadline: float | None) -> None:
        super().__init__()
        self._deadline = deadline

    def _on_step(self) -> bool:
        return self._deadline is None or time.monotonic() < self._deadline


def count_transitions(train: EnvironmentDataset, held_back: EnvironmentDataset | None) -> int:
    """Different transitions of the episodes: each stream has the same ones."""
    return train.num_transitions // train.info.num_streams + (0 if held_back is None else held_back.num_transitions)
