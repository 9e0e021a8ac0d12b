"""Conversion from and to Minari's datasets: episodes of T steps with T + 1 observations."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ldm_hf.dataset_builder.curves import LearningCurve, Sample
from ldm_hf.dataset_builder.reader import EnvironmentDataset, open_dataset
from ldm_hf.dataset_builder.records import RunRecord, describe_files, package_versions, read_records
from ldm_hf.dataset_builder.repository import update_repository
from ldm_hf.dataset_builder.schema import RunInfo, environment_folder
from ldm_hf.dataset_builder.writer import ChunkRange, Terminals, plan_chunks, write_dataset
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.registry import list_environments, spec
from ldm_hf.errors import ConfigError, DatasetFormatError, UnknownEnvironmentError
from ldm_hf.files import replacing
from ldm_hf.modeling.spaces_ldm import SlotLayout, space_from_json, space_to_json
from ldm_hf.modeling.transitions_ldm import Transitions

LIBRARY = "minari"
"""Slug for datasets whose environment no library of the registry has."""

_REFERENCE = "reference_action"  # key of the infos under which labels travel

Progress = Callable[[int, int], None]
"""Called with the episodes that are converted, and how many there are."""


def from_minari(
    source: str | Path,
    root: Path,
    *,
    environment: str | None = None,
    progress: Progress = lambda done, total: None,
) -> RunRecord:
    """Convert a Minari dataset to a run of an environment, and describe its library anew.

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
        curve=_curve(returns, np.cumsum(lengths), *scores),
        deterministic_returns=returns,
        num_episodes=len(returns),
        num_transitions=sum(lengths),
        num_streams=1,
        algorithm=str(dataset.storage.metadata.get("algorithm_name") or "unknown"),
        hyperparameters={},
        source=f"Minari dataset {dataset.spec.dataset_id}; labels are the recorded actions unless it says otherwise",
        seed=0,
        seconds=0.0,
        library_version=None,
        licence="unknown",
        provenance={"provider": "minari", "version": dataset.spec.minari_version},
        packages=package_versions(),
    )
    folder = environment_folder(root, name) / run
    with replacing(folder) as temporary:
        temporary.mkdir()
        chunks = sorted(plan_chunks([sum(lengths)], seed=0), key=lambda chunk: chunk.start)
        reader = _InOrder(episodes)
        write_dataset(temporary, info, chunks, reader.transitions, reader.terminals())
        record = RunRecord(name, run, None, info, describe_files(temporary))
        record.write(temporary)
    update_repository(folder.parent.parent)
    return record


def to_minari(
    root: Path,
    environment: str,
    dataset_id: str,
    *,
    run: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Convert a run to a Minari dataset, lossless, with the labels as ``infos["reference_action"]``.

    Where the observation that an episode led to was not recorded (the recording ended, or the algorithm broke the episode
    off), the episode is one step shorter and truncated, so that its last observation is a recorded one.

    Args:
        root: data folder.
        environment: id of the environment.
        dataset_id: of the new dataset, such as ``cartpole/ppo-v0``; Minari keeps it under ``MINARI_DATASETS_PATH``.
        run: name of the run; by default the one with the highest returns.
        progress: told how much is done.

    Returns:
        Where Minari put it.

    Raises:
        ConfigError: Minari is not installed, or refuses the id.
        DatasetFormatError: there is no such run, or it has no terminal observations.
    """
    minari = _minari()
    folder = _run_folder(root, environment, run)
    data = open_dataset(folder)
    export = _Export(data)
    buffers = list(export.episodes(progress))
    info = data.info
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on authors and code, which are not known here
            created = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=_gymnasium_spec(environment),
                observation_space=space_from_json(export.observation_space),
                action_space=space_from_json(data.action_space),
                algorithm_name=info.algorithm,
                description=f"{environment}, run {info.run}: {info.algorithm}, seed {info.seed}, converted by ldm_hf",
                jpeg_encoding=False,
            )
        # Given as arguments, Minari would forget them where it knows no environment to play.
        created.storage.update_metadata({"ref_min_score": info.first10, "ref_max_score": info.last10})
    except (ValueError, OSError) as error:
        raise ConfigError(f"Minari refuses {dataset_id}: {' '.join(str(error).split())}") from error
    return Path(created.storage.data_path)


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
            labels = (episode.infos or {}).get(_REFERENCE)
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


class _InOrder:
    """Chunks of episodes that are read once, in order."""

    def __init__(self, episodes: _Episodes) -> None:
        self._episodes = iter(episodes)
        self._left: list[Transitions] = []
        self._steps = 0
        self._ends: list[tuple[int, np.ndarray, np.ndarray | None]] = []

    def transitions(self, chunk: ChunkRange) -> Transitions:
        """The next chunk."""
        wanted = chunk.stop - chunk.start
        while sum(map(len, self._left)) < wanted:
            episode, (slots, images) = next(self._episodes)
            self._left.append(episode)
            self._steps += len(episode)
            self._ends.append((self._steps - 1, slots, images))
        whole = Transitions.joined(self._left)
        self._left = [whole[wanted:]]
        return whole[:wanted]

    def terminals(self) -> Iterator[Terminals]:
        """The last observations, once all chunks have been read."""
        steps = np.array([step for step, _, _ in self._ends])
        images = None if self._ends[0][2] is None else np.concatenate([image for _, _, image in self._ends])
        yield Terminals(np.zeros(len(steps), int), steps, np.concatenate([slots for _, slots, _ in self._ends]), images)


class _Export:
    """The episodes of a run as Minari wants them."""

    def __init__(self, data: EnvironmentDataset) -> None:
        self._data, self._terminals = data, data.terminals()
        self._rows = self._terminals.rows()
        self._observation = SlotLayout.of(data.observation_space)
        self._action = SlotLayout.of(data.action_space, role="action")
        self.observation_space = self._observation.read_space

    def episodes(self, progress: Progress) -> Iterator[Any]:
        """The episodes, stream by stream."""
        from minari.data_collector import EpisodeBuffer

        number = 0
        for stream, chunks in self._streams().items():
            left: list[Transitions] = []
            first = 0
            for chunk in chunks:
                left.append(self._data.chunk(chunk))
                whole = Transitions.joined(left)
                start = 0
                for end in np.flatnonzero(whole.terminated | whole.truncated).tolist():
                    yield self._buffer(EpisodeBuffer, number, whole[start : end + 1], (stream, first + end))
                    number, start = number + 1, end + 1
                    progress(number, self._data.info.num_episodes)
                left, first = [whole[start:]], first + start
            if len(left[0]) > 1:
                yield self._buffer(EpisodeBuffer, number, left[0], None)
                number += 1

    def _streams(self) -> dict[int, list[int]]:
        """The chunks of each stream in time order."""
        places = []
        for index, (stream, step) in enumerate(self._data.places()):
            places.append((stream, step, index))
        streams: dict[int, list[int]] = {}
        for stream, _, index in sorted(places):
            streams.setdefault(stream, []).append(index)
        return streams

    def _buffer(self, kind: Any, number: int, episode: Transitions, place: tuple[int, int] | None) -> Any:
        row = None if place is None else self._rows.get(place)
        if row is None:  # what the last action led to is unknown: the observation before it is the last one
            steps = len(episode) - 1
            slots, images = episode.observations, episode.images
        else:
            steps = len(episode)
            slots = np.concatenate([episode.observations, self._terminals.observations[row : row + 1]])
            images = None
            if episode.images is not None and self._terminals.images is not None:
                images = np.concatenate([episode.images, self._terminals.images[row : row + 1]])
        terminated, truncated = episode.terminated[:steps].copy(), episode.truncated[:steps].copy()
        if steps and not terminated[-1]:
            truncated[-1] = True
        assert episode.reference_actions is not None
        return kind(
            id=number,
            observations=self._observation.values(slots, images),
            actions=self._action.values(episode.actions[:steps]),
            rewards=episode.rewards[:steps].tolist(),
            terminations=terminated.tolist(),
            truncations=truncated.tolist(),
            infos={_REFERENCE: self._action.values(episode.reference_actions[:steps])},
        )


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise ConfigError("Minari datasets need Minari: pip install 'ldm_hf[minari]'") from error
    return minari


def _open(source: str | Path) -> Any:
    minari = _minari()
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


def _curve(returns: list[float], ends: np.ndarray, low: float | None, high: float | None) -> LearningCurve:
    curve = LearningCurve.of(returns, ends, least=1)
    if low is None or high is None:
        return curve
    return LearningCurve(Sample(float(low), 0.0, 1), Sample(float(high), 0.0, 1), curve.transitions, curve.returns)


def _run_folder(root: Path, environment: str, run: str | None) -> Path:
    folder = environment_folder(root, environment)
    kept = {
        record.run: record.info for record in read_records(folder) if record.dropped is None and record.info is not None
    }
    if (run is not None and run not in kept) or not kept:
        wanted = f"run {run}" if run else "run that is kept"
        raise UnknownEnvironmentError(f"{root} has no {wanted} of {environment}; it has {', '.join(kept) or 'none'}")
    return folder / (run or max(kept, key=lambda name: kept[name].last10))


def _gymnasium_spec(environment: str) -> Any:
    """What Gymnasium registers under the environment's name in this process, if anything."""
    import gymnasium

    parsed = EnvironmentId.parse(environment)
    try:
        return gymnasium.spec(parsed.name) if spec(environment) and parsed.library == "gymnasium" else None
    except (UnknownEnvironmentError, gymnasium.error.Error):
        return None
