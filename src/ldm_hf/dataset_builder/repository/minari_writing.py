"""To Minari's datasets: a run becomes episodes of T steps with T + 1 observations."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.dataset_builder.repository.conversion import Progress, episodes_in_time, kept_run
from ldm_hf.dataset_builder.repository.minari_format import REFERENCE, import_minari
from ldm_hf.env_registry.ids import EnvironmentId
from ldm_hf.env_registry.registry import spec
from ldm_hf.errors import ConfigError, UnknownEnvironmentError
from ldm_hf.modeling.spaces_ldm import SlotLayout, Transitions, space_from_json


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
    minari = import_minari()
    data = kept_run(root, environment, run)
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
        for episode, place in episodes_in_time(self._data):
            if place is not None or len(episode) > 1:
                yield self._buffer(EpisodeBuffer, number, episode, place)
                number += 1
                progress(number, self._data.info.num_episodes)

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
            infos={REFERENCE: self._action.values(episode.reference_actions[:steps])},
        )


def _gymnasium_spec(environment: str) -> Any:
    """What Gymnasium registers under the environment's name in this process, if anything."""
    import gymnasium

    parsed = EnvironmentId.parse(environment)
    try:
        return gymnasium.spec(parsed.name) if spec(environment) and parsed.library == "gymnasium" else None
    except (UnknownEnvironmentError, gymnasium.error.Error):
        return None
