"""What conversions between our runs and other formats of episodes share, in both directions."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset, open_dataset
from ldm_hf.dataset_builder.format.records import RunRecord, describe_files, read_records
from ldm_hf.dataset_builder.format.schema import RunInfo, environment_folder
from ldm_hf.dataset_builder.format.writer import ChunkRange, Terminals, plan_chunks, write_dataset
from ldm_hf.dataset_builder.repository.repository import update_repository
from ldm_hf.errors import UnknownEnvironmentError
from ldm_hf.modeling.spaces_ldm import Transitions
from ldm_hf.utils.files import replacing

Progress = Callable[[int, int], None]
"""Called with the episodes that are converted, and how many there are."""

LastObservation = tuple[np.ndarray, np.ndarray | None]
"""What an episode led to: slots of shape (1, S), and the image of shape (1, size, size, 3) or None."""


def kept_run(root: Path, environment: str, run: str | None) -> EnvironmentDataset:
    """A run of a data folder by its name; by default the one with the highest returns.

    Raises:
        UnknownEnvironmentError: there is no such run.
        DatasetFormatError: it is damaged.
    """
    folder = environment_folder(root, environment)
    kept = {
        record.run: record.info for record in read_records(folder) if record.dropped is None and record.info is not None
    }
    if (run is not None and run not in kept) or not kept:
        wanted = f"run {run}" if run else "run that is kept"
        raise UnknownEnvironmentError(f"{root} has no {wanted} of {environment}; it has {', '.join(kept) or 'none'}")
    return open_dataset(folder / (run or max(kept, key=lambda name: kept[name].last10)))


def episodes_in_time(data: EnvironmentDataset) -> Iterator[tuple[Transitions, tuple[int, int] | None]]:
    """The episodes of a run, stream by stream, each with the stream and step of its last row.

    What is left at the end of a stream comes as an episode without such a place: nothing says that it ended there.
    """
    streams: dict[int, list[int]] = {}
    for stream, _, index in sorted((stream, step, index) for index, (stream, step) in enumerate(data.places())):
        streams.setdefault(stream, []).append(index)
    for stream, chunks in streams.items():
        left: list[Transitions] = []
        first = 0
        for chunk in chunks:
            left.append(data.chunk(chunk))
            whole = Transitions.joined(left)
            start = 0
            for end in np.flatnonzero(whole.terminated | whole.truncated).tolist():
                yield whole[start : end + 1], (stream, first + end)
                start = end + 1
            left, first = [whole[start:]], first + start
        if len(left[0]):
            yield left[0], None


class InOrder:
    """Episodes as the chunks and terminal observations of a run of one stream, read once, in order.

    Args:
        episodes: each with what it led to.
    """

    def __init__(self, episodes: Iterator[tuple[Transitions, LastObservation]]) -> None:
        self._episodes = episodes
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


def write_episodes(root: Path, info: RunInfo, episodes: Iterator[tuple[Transitions, LastObservation]]) -> RunRecord:
    """Write episodes as a run of one stream, and describe its library again; raises ``StorageError`` if the disk is full."""
    folder = environment_folder(root, info.environment) / info.run
    with replacing(folder) as temporary:
        temporary.mkdir()
        chunks = sorted(plan_chunks([info.num_transitions], seed=0), key=lambda chunk: chunk.start)
        reader = InOrder(episodes)
        write_dataset(temporary, info, chunks, reader.transitions, reader.terminals())
        record = RunRecord(info.environment, info.run, None, info, describe_files(temporary))
        record.write(temporary)
    update_repository(folder.parent.parent)
    return record
