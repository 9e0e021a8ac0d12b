"""From Minari's datasets: episodes of T steps with T + 1 observations become a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ldm_hf.dataset_builder.curves import LearningCurve, Sample
from ldm_hf.dataset_builder.format.records import RunRecord, package_versions
from ldm_hf.dataset_builder.format.schema import RunInfo
from ldm_hf.dataset_builder.repository.conversion import Progress, write_episodes
from ldm_hf.dataset_builder.repository.minari_format import REFERENCE, import_minari
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.registry import list_environments
from ldm_hf.errors import DatasetFormatError
from ldm_hf.modeling.spaces_ldm import SlotLayout, Transitions, space_to_json

LIBRARY = "minari"
"""Slug for datasets whose environment no library of the registry has."""


def from_minari(
    source: str | Path,
    root: Path,
    *,
    environment: str | None = None,
    progress: Progress = lambda done, total: None,
) -> RunRecord:
    """Convert a Minari dataset to a run of an environment, and describe its library again.

    Its labels are the actions that were taken, unless it came from ``to_minari``, which keeps the labels beside them. An
    episode that neither terminated nor was truncated counts as truncated. 0 % and 100 % are the reference scores of the
    dataset where it has them, else the mean returns of its first and last 10 % of episodes.

    Args:
        source: folder of the dataset, or its id, which Minari downloads if it is not there.
        root: data folder.
        environment: id of the environment; by default the one that the dataset names, in the library that has it.
        progress: told how much is done.

    Raises:
        ConfigError: Minari is not installed.
        DatasetFormatError: there is no such dataset, or it has no episodes.
        UnsupportedSpaceError: its spaces do not fit a model.
        StorageError: the disk is full.
    """
    dataset = _open(source)
    spaces = space_to_json(dataset.observation_space), space_to_json(dataset.action_space)
    observation, action = SlotLayout.of(spaces[0]), SlotLayout.of(spaces[1], role="action")
    name = environment or _environment_of(dataset)
    run = "minari-" + "-".join(dataset.spec.dataset_id.split("/"))
    episodes = _Episodes(dataset, observation, action)
    returns, lengths = episodes.measure(progress)
    scores = [dataset.storage.metadata.get(key) for key in ("ref_min_score", "ref_max_score")]
    info = RunInfo(
        environment=name,
        run=run,
        observation_space=spaces[0],
        action_space=spaces[1],
        curve=_curve(returns, np.cumsum([0, *lengths[:-1]]), *scores),
        deterministic_returns=returns,
        num_episodes=len(returns),
        num_transitions=sum(lengths),
        num_streams=1,
        training_steps=None,
        algorithm=str(dataset.storage.metadata.get("algorithm_name") or "unknown"),
        hyperparameters={},
        source=f"Minari dataset {dataset.spec.dataset_id}; labels are the recorded actions unless it says otherwise",
        seed=0,
        max_episode_steps=None,
        seeding=None,
        library_version=None,
        licence="unknown",
        provenance={"provider": "minari", "version": dataset.spec.minari_version},
        packages=package_versions(),
    )
    return write_episodes(root, info, iter(episodes))


class _Episodes:
    """The episodes of a Minari dataset as slots."""

    def __init__(self, dataset: Any, observation: SlotLayout, action: SlotLayout) -> None:
        self._dataset, self._observation, self._action = dataset, observation, action

    def measure(self, progress: Progress) -> tuple[list[float], list[int]]:
        """Return and length of each episode."""
        returns, lengths = [], []
        total = len(self._dataset.episode_indices)
        for episode in self._dataset.iterate_episodes():
            returns.append(float(np.asarray(episode.rewards, np.float64).sum()))
            lengths.append(len(episode.rewards))
            progress(len(lengths), total)
        if not lengths:
            raise DatasetFormatError(f"the Minari dataset {self._dataset.spec.dataset_id} has no episodes")
        return returns, lengths

    def __iter__(self) -> Iterator[tuple[Transitions, tuple[np.ndarray, np.ndarray | None]]]:
        """Transitions of each episode, and its last observation as slots and image."""
        for episode in self._dataset.iterate_episodes():
            steps = len(episode.rewards)
            slots, images = self._observation.flatten(episode.observations, batched=True)
            actions, _ = self._action.flatten(episode.actions, batched=True)
            labels = (episode.infos or {}).get(REFERENCE)
            terminated, truncated = np.zeros(steps, bool), np.zeros(steps, bool)
            terminated[-1] = bool(episode.terminations[-1])
            truncated[-1] = not terminated[-1]
            transitions = Transitions(
                slots[:steps],
                None if images is None else images[:steps],
                actions,
                np.asarray(episode.rewards, np.float32),
                terminated,
                truncated,
                actions if labels is None else self._action.flatten(np.asarray(labels)[:steps], batched=True)[0],
            )
            yield transitions, (slots[steps:], None if images is None else images[steps:])


def _open(source: str | Path) -> Any:
    minari = import_minari()
    try:
        if Path(source).is_dir():
            folder = Path(source)
            return minari.MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)
        return minari.load_dataset(str(source), download=True)
    except Exception as error:  # Minari raises what its storages and its server happen to raise
        raise DatasetFormatError(
            f"{source} cannot be read as a Minari dataset: {' '.join(str(error).split())}"
        ) from error


def _environment_of(dataset: Any) -> str:
    """The environment's id in the registry, or under the library ``minari``."""
    name = dataset.spec.dataset_id if dataset.env_spec is None else dataset.env_spec.id
    known = [found.id for found in list_environments(all_versions=True) if EnvironmentId.parse(found.id).name == name]
    return known[0] if known else str(EnvironmentId(LIBRARY, name))


def _curve(returns: list[float], starts: np.ndarray, low: float | None, high: float | None) -> LearningCurve:
    curve = LearningCurve.of(returns, starts, least=1)
    if low is None or high is None:
        return curve
    return LearningCurve(Sample(float(low), 0.0, 1), Sample(float(high), 0.0, 1), curve.transitions, curve.returns)
