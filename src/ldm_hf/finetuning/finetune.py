"""``ldm finetune``: data of one environment, then the training loop on them, in rounds where the data are the model's own.

Each step writes its result under a temporary name and renames it; a result that is there is a step that is done.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset, open_datasets
from ldm_hf.env_registry.registry import spec
from ldm_hf.errors import ConfigError
from ldm_hf.finetuning.choosing import choose_episodes, is_written
from ldm_hf.finetuning.collecting import collect
from ldm_hf.hub.pretrained import load_pretrained
from ldm_hf.training.config import TrainingConfig, renamed
from ldm_hf.training.loop import train
from ldm_hf.utils.files import replacing
from ldm_hf.utils.progress import progress_bar

SETTINGS: dict[str, Any] = {
    "max_steps": 200,
    "train_batch_size": 8,
    "save_steps": 100,
    "validation_steps": 10,
    "metric_for_best_model": "action_error",
    "previous_action_dropout": 0.5,
    "early_stopping_patience": 5,
    "learning_rate": 1e-3,
    "warmup_steps": 20,
}
"""What differs from the settings of training by default."""

_CLAIM = "finetuning.json"
_OURS = ("data", "validation_data", "output_dir", "model", "environments")


@dataclass(frozen=True)
class OwnRollouts:
    """How a model learns from its own episodes.

    Attributes:
        rounds: how often episodes are collected, filtered and trained on, each time with the model of the round before.
        keep: share of the episodes of a round that is trained on: so many, the best of all rounds so far.
        temperature: of the actions, see ``LDMPolicy``.
        device: torch device that acts.
    """

    rounds: int = 1
    keep: float = 0.25
    temperature: float = 1.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError(f"the share of episodes to keep must be above 0 and at most 1, got {self.keep:g}")
        if self.rounds < 1 or self.temperature <= 0:
            raise ConfigError(
                f"there must be at least 1 round and a temperature above 0, got {self.rounds} and {self.temperature:g}"
            )


@dataclass(frozen=True)
class FineTuning:
    """What is fine-tuned, and on what.

    Attributes:
        model: folder or Hub name.
        environment: id of the environment.
        episodes: how many are trained on; of own rollouts, how many are collected in a round.
        source: where data of reference runs are, as ``TrainingConfig.data``, or how the model makes its own.
    """

    model: str
    environment: str
    episodes: int
    source: str | OwnRollouts


def finetune(
    tuning: FineTuning,
    output: Path,
    settings: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path | None:
    """Fine-tune a model, continuing from what is in ``output`` already.

    Args:
        tuning: what, and on what.
        output: folder for data, checkpoints and, at the end, the model in ``output/model``; of several rounds, those before
            the last have folders ``round-<number>`` in it.
        settings: of ``TrainingConfig``, over ``SETTINGS``.
        say: told which episodes are trained on.

    Returns:
        The folder of the model; None if SIGTERM came before.

    Raises:
        ConfigError: a setting cannot be used, the folder holds another fine-tuning, there are fewer episodes than asked for,
            or own episodes of which none is better than another.
        CheckpointError: there is no such model.
        UnknownEnvironmentError: there is no such environment, or no data of it.
        UnsupportedSpaceError: the environment does not fit the model.
        EnvironmentFailure: it broke.
    """
    wanted = {**SETTINGS, **(settings or {})}
    if not_theirs := [name for name in _OURS if name in wanted]:
        raise ConfigError(f"fine-tuning sets {', '.join(not_theirs)} itself: leave it out of the settings")
    config = TrainingConfig.from_mapping({**wanted, "data": str(output / "data"), "output_dir": str(output)})
    config = replace(config, model=tuning.model, environments=[tuning.environment])
    if isinstance(tuning.source, str):
        reference = _reference(tuning, tuning.source)
        _claim(output, tuning, wanted)
        choose_episodes([reference], tuning.episodes, output, config.seed, say)
        return _trained(_with_validation(config, output), tuning.model)
    _check_fit(tuning.model, spec(tuning.environment).observation_space, spec(tuning.environment).action_space)
    _claim(output, tuning, wanted)
    rounds, collected = tuning.source.rounds, []
    for number in range(1, rounds + 1):
        folder = output if number == rounds else output / f"round-{number}"
        collected.append(_own(tuning, tuning.source, config, number, folder / "rollouts"))
        count = max(1, round(tuning.source.keep * tuning.episodes))
        choose_episodes(collected, count, folder, config.seed, say)
        done = _trained(_with_validation(config, folder), tuning.model)
        if done is None:
            return None
        config = replace(config, model=str(done))
    return done


def _reference(tuning: FineTuning, data: str) -> EnvironmentDataset:
    """The best reference run only: labels of several runs, of several policies, would contradict each other."""
    (dataset,) = open_datasets(data, [tuning.environment])
    _check_fit(tuning.model, dataset.observation_space, dataset.action_space)
    return dataset.best_run()


def _own(tuning: FineTuning, own: OwnRollouts, config: TrainingConfig, number: int, root: Path) -> EnvironmentDataset:
    """The episodes of a round, collected if they are not there yet."""
    if not is_written(root, tuning.environment):
        model, processor = load_pretrained(config.model)
        model.to(own.device)  # type: ignore[arg-type]
        with progress_bar(f"round {number}: acting in {tuning.environment}", tuning.episodes, "episode") as bar:
            collect(
                model,
                processor,
                tuning.environment,
                root,
                episodes=tuning.episodes,
                temperature=own.temperature,
                seed=config.seed,
                round_number=number,
                progress=lambda done: bar.update(done - bar.n) and None,
            )
    (dataset,) = open_datasets(root, [tuning.environment])
    return dataset


def _with_validation(config: TrainingConfig, folder: Path) -> TrainingConfig:
    """The settings of training in a folder; it stops early where episodes are held back."""
    config = replace(config, data=str(folder / "data"), output_dir=str(folder))
    if (folder / "validation").is_dir():
        return replace(config, validation_data=str(folder / "validation"))
    return replace(config, early_stopping_patience=None)


def _trained(config: TrainingConfig, base_model: str) -> Path | None:
    """The model of finished training, made from another one in however many rounds."""
    folder = Path(config.output_dir) / "model"
    return folder if folder.is_dir() else train(config, base_model=base_model)


def _check_fit(model: str, observation_space: Any, action_space: Any) -> None:
    _, processor = load_pretrained(model)
    processor.observation_layout(observation_space)
    processor.action_layout(action_space)


def _claim(output: Path, tuning: FineTuning, settings: Mapping[str, Any]) -> None:
    """Tie a folder to its settings, so that steps of different ones are never mixed."""
    path, claimed = output / _CLAIM, json.loads(json.dumps({**asdict(tuning), "settings": dict(settings)}))
    if path.is_file():
        found = json.loads(path.read_text())
        if {**found, "settings": renamed(found.get("settings", {}))} != claimed:
            raise ConfigError(f"{output} holds a fine-tuning with other settings; choose another --output")
        return
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(claimed))
