"""Recorded episodes: what each returned, which are the best, and a dataset of them only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.dataset_builder.format.records import RunRecord, describe_files
from ldm_hf.dataset_builder.format.schema import RunInfo, environment_folder
from ldm_hf.dataset_builder.format.writer import ChunkRange, Terminals, plan_chunks, write_dataset
from ldm_hf.dataset_builder.repository.repository import update_repository
from ldm_hf.modeling.spaces_ldm import Transitions
from ldm_hf.utils.files import replacing


@dataclass(frozen=True)
class Episode:
    """An episode that ended: transitions ``start`` to ``stop`` of a stream.

    Attributes:
        run: number of its run among those that were searched.
        stream, start, stop: its transitions.
        total: its return.
    """

    run: int
    stream: int
    start: int
    stop: int
    total: float

    def __len__(self) -> int:
        return self.stop - self.start


def recorded_episodes(runs: Sequence[EnvironmentDataset]) -> list[Episode]:
    """The episodes of runs, in the order in which they began; those that were broken off are left out.

    A race joins the slices of a run as further streams, each of which begins at row 0: those of a later slice come later.

    Args:
        runs: datasets of one run each.

    Raises:
        DatasetFormatError, HubError: one cannot be read.
    """
    found = [episode for number, run in enumerate(runs) for episode in _episodes_of(number, run)]
    widths = [_streams_of_a_slice(run.info) for run in runs]
    return sorted(found, key=lambda one: (one.run, one.stream // widths[one.run], one.start, one.stream))


def _streams_of_a_slice(info: RunInfo) -> int:
    slices = info.hyperparameters.get("slices")  # which rollouts of a raced policy have too: they trained nothing
    return info.num_streams // len(slices) if slices and info.training_steps is None else info.num_streams


def best_episodes(episodes: Sequence[Episode], count: int) -> list[Episode]:
    """The ``count`` episodes of highest return, in the order given; of equal ones the later, whose policy knew more."""
    ranked = sorted(range(len(episodes)), key=lambda index: (episodes[index].total, index))
    return [episodes[index] for index in sorted(ranked[-count:])]


def drawn_episodes(episodes: Sequence[Episode], count: int, seed: int, share: float) -> list[Episode]:
    """``count`` episodes at random of the last ``share`` of those given, or of as many as are needed, in their order.

    Those of highest return would be those that began where it is easy, and the shortest where every step costs.
    """
    last = episodes[-max(count, round(share * len(episodes))) :]
    return [last[index] for index in sorted(np.random.default_rng(seed).permutation(len(last))[:count])]


def read_episodes(
    runs: Sequence[EnvironmentDataset], episodes: Sequence[Episode]
) -> tuple[Transitions, list[Terminals]]:
    """The transitions of episodes, one after another, and what each led to; raises as ``recorded_episodes``."""
    parts: list[list[Transitions]] = [[] for _ in episodes]
    for number, run in enumerate(runs):
        for (stream, first), chunk in _in_time(run):
            last = first + int(run.chunk_lengths[chunk])
            inside = [
                index
                for index, episode in enumerate(episodes)
                if (episode.run, episode.stream) == (number, stream) and episode.start < last and episode.stop > first
            ]
            transitions = run.chunk(chunk) if inside else None
            for index in inside:
                assert transitions is not None
                start, stop = max(episodes[index].start, first), min(episodes[index].stop, last)
                parts[index].append(transitions[start - first : stop - first])
    stops = np.cumsum([episode.stop - episode.start for episode in episodes])
    ends = [run.terminals() for run in runs]
    terminals = [_moved(ends[episode.run], episode, int(stop)) for episode, stop in zip(episodes, stops, strict=True)]
    return Transitions.joined([part for pieces in parts for part in pieces]), terminals


def in_orders(
    transitions: Transitions, terminals: Sequence[Terminals], count: int, seed: int
) -> tuple[list[Transitions], list[Terminals]]:
    """Episodes in ``count`` orders, the given one and shuffled ones, as a stream each.

    What is before an episode in the context should not tell which one it is.

    Args:
        transitions: of the episodes, one after another.
        terminals: what each led to, as ``read_episodes`` gives it.
        count: how many orders.
        seed: of the shuffling.
    """
    stops = [int(ends.steps[0]) + 1 for ends in terminals]
    pieces = [transitions[start:stop] for start, stop in zip([0, *stops[:-1]], stops, strict=True)]
    generator = np.random.default_rng(seed)
    streams, moved = [], []
    for stream in range(count):
        order = generator.permutation(len(pieces)) if stream else np.arange(len(pieces))
        streams.append(Transitions.joined([pieces[index] for index in order]))
        ends = np.cumsum([len(pieces[index]) for index in order])
        moved += [
            replace(terminals[index], streams=np.array([stream]), steps=np.array([int(end) - 1]))
            for index, end in zip(order, ends, strict=True)
        ]
    return streams, moved


def write_run(root: Path, info: RunInfo, streams: Sequence[Transitions], terminals: Iterable[Terminals] = ()) -> None:
    """Write streams of labelled transitions as the one run of a data folder, and describe its library.

    Raises:
        StorageError: the disk is full.
    """
    folder = environment_folder(root, info.environment) / info.run
    with replacing(folder) as temporary:
        temporary.mkdir()

        def read(chunk: ChunkRange) -> Transitions:
            return streams[chunk.stream][chunk.start : chunk.stop]

        write_dataset(temporary, info, plan_chunks([len(stream) for stream in streams], info.seed), read, terminals)
        RunRecord(info.environment, info.run, None, info, describe_files(temporary)).write(temporary)
    update_repository(folder.parent.parent)


def _episodes_of(number: int, run: EnvironmentDataset) -> Iterable[Episode]:
    ends = run.terminals().rows()
    rewards: dict[int, list[np.ndarray]] = {}
    over: dict[int, list[np.ndarray]] = {}
    for (stream, _), chunk in _in_time(run):
        part = run.chunk(chunk)
        # Copies, or the observations of the whole run would stay in memory with them.
        rewards.setdefault(stream, []).append(part.rewards.astype(np.float64))
        over.setdefault(stream, []).append(part.terminated | part.truncated)
    for stream, parts in rewards.items():
        whole, start = np.concatenate(parts), 0
        for stop in (np.flatnonzero(np.concatenate(over[stream])) + 1).tolist():
            if (stream, stop - 1) in ends:
                yield Episode(number, stream, start, stop, float(whole[start:stop].sum()))
            start = stop


def _moved(ends: Terminals, episode: Episode, stop: int) -> Terminals:
    """What an episode led to, where it is the one of a single stream that ends at ``stop``."""
    row = ends.rows()[(episode.stream, episode.stop - 1)]
    images = None if ends.images is None else ends.images[row : row + 1]
    return Terminals(np.zeros(1, int), np.array([stop - 1]), ends.observations[row : row + 1], images)


def _in_time(run: EnvironmentDataset) -> list[tuple[tuple[int, int], int]]:
    """Stream, first step and number of each chunk, in the order of recording."""
    return sorted((place, chunk) for chunk, place in enumerate(run.places()))
