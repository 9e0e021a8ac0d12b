"""Writes the files of a run."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldm_hf.dataset_builder.format import image_column
from ldm_hf.dataset_builder.format.checks import ValueChecks
from ldm_hf.dataset_builder.format.episode_index import EpisodeIndex, Resets
from ldm_hf.dataset_builder.format.schema import (
    CHUNK_LENGTH,
    EPISODES_FILE,
    TERMINAL_FILE,
    RunInfo,
    arrow_schema,
    terminal_schema,
)
from ldm_hf.errors import DatasetFormatError
from ldm_hf.modeling.spaces_ldm import SlotLayout, Transitions

_ROWS_PER_FILE = 2**20


@dataclass(frozen=True)
class ChunkRange:
    """Transitions ``start`` to ``stop`` of a stream."""

    stream: int
    start: int
    stop: int


@dataclass(frozen=True)
class Terminals:
    """Observations that ended episodes, N of them.

    Attributes:
        streams, steps: place of the transition that led to each, of shape (N,).
        observations: slots, float32 of shape (N, S).
        images: uint8 of shape (N, image_size, image_size, 3), or None.
    """

    streams: np.ndarray
    steps: np.ndarray
    observations: np.ndarray
    images: np.ndarray | None

    def rows(self) -> dict[tuple[int, int], int]:
        """The row of each place, stream and step."""
        return {place: row for row, place in enumerate(zip(self.streams.tolist(), self.steps.tolist(), strict=True))}


def plan_chunks(stream_lengths: list[int], seed: int, chunk_length: int = CHUNK_LENGTH) -> list[ChunkRange]:
    """Cut streams into nearly equal pieces of at most ``chunk_length`` and shuffle the pieces."""
    chunks = []
    for stream, length in enumerate(stream_lengths):
        edges = np.linspace(0, length, math.ceil(length / chunk_length) + 1).round().astype(int).tolist()
        chunks += [ChunkRange(stream, start, stop) for start, stop in itertools.pairwise(edges)]
    order = np.random.default_rng(seed).permutation(len(chunks))
    return [chunks[index] for index in order]


def write_dataset(
    folder: Path,
    info: RunInfo,
    chunks: list[ChunkRange],
    read: Callable[[ChunkRange], Transitions],
    terminals: Iterable[Terminals] = (),
    progress: Callable[[int], None] = lambda rows: None,
    *,
    resets: Resets = (0,),
) -> list[Path]:
    """Write chunks in the order given, one row group each, as ``train-<i>-of-<n>.parquet``, and what lies beside them.

    Args:
        folder: where to; it must exist.
        info: goes into every file.
        chunks: which transitions.
        read: gives the transitions of a chunk, reference actions included.
        terminals: observations that ended episodes, in pieces.
        progress: called with the number of rows written.
        resets: steps before which the algorithm reset all streams, in order, or a mapping that has them for each stream.

    Raises:
        DatasetFormatError: a value is not finite or lies outside its space; the message names file, row and column.
    """
    observation, action = SlotLayout.of(info.observation_space), SlotLayout.of(info.action_space, role="action")
    schema = arrow_schema(observation, action, info)
    files = list(_split(chunks))
    checks, index_of_episodes = ValueChecks(observation, action), EpisodeIndex(resets)
    paths, rows = [], 0
    for index, part in enumerate(files):
        path = folder / f"train-{index:05d}-of-{len(files):05d}.parquet"
        with pq.ParquetWriter(path, schema, **_encoding(schema)) as writer:
            first = rows
            for chunk in part:
                transitions = read(chunk)
                checks.require(transitions, f"{info.environment}, run {info.run}: {path.name}", rows - first)
                index_of_episodes.add(chunk.stream, chunk.start, transitions)
                writer.write_table(_table(info.run, chunk, transitions, schema), row_group_size=CHUNK_LENGTH)
                rows += chunk.stop - chunk.start
                progress(rows)
        paths.append(path)
    schema = terminal_schema(observation, info)
    with pq.ParquetWriter(folder / TERMINAL_FILE, schema, **_encoding(schema)) as writer:
        for piece in terminals:
            if defect := checks.observation_defect(piece.observations):
                raise DatasetFormatError(f"{info.environment}, run {info.run}: {TERMINAL_FILE}: {defect.reason}")
            writer.write_table(_terminal_table(info.run, piece, schema), row_group_size=CHUNK_LENGTH)
    index_of_episodes.write(folder / EPISODES_FILE, info)
    return paths


def _split(chunks: list[ChunkRange]) -> Iterator[list[ChunkRange]]:
    part: list[ChunkRange] = []
    for chunk in chunks:
        part.append(chunk)
        if sum(each.stop - each.start for each in part) >= _ROWS_PER_FILE:
            yield part
            part = []
    if part:
        yield part


def _encoding(schema: pa.Schema) -> dict:
    floats = [name for name in ("observation", "action", "reference_action") if name in schema.names]
    leaves = [f"{name}.list.element" for name in floats] + ["reward"] * ("reward" in schema.names)
    return {
        "compression": "zstd",
        "use_dictionary": ["run", "stream"],  # It slows down images and gains nothing on floats.
        "column_encoding": dict.fromkeys(leaves, "BYTE_STREAM_SPLIT"),
        "write_page_checksum": True,
    }


def _table(run: str, chunk: ChunkRange, transitions: Transitions, schema: pa.Schema) -> pa.Table:
    length = chunk.stop - chunk.start
    arrays = {
        **_place(run, np.full(length, chunk.stream), np.arange(chunk.start, chunk.stop)),
        **_observed(transitions.observations, transitions.images),
        "action": _vectors(transitions.actions),
        "reward": pa.array(transitions.rewards.astype(np.float32)),
        "terminated": pa.array(transitions.terminated),
        "truncated": pa.array(transitions.truncated),
        "reference_action": _vectors(transitions.reference_actions),
    }
    return pa.table([arrays[name] for name in schema.names], schema=schema)


def _terminal_table(run: str, terminals: Terminals, schema: pa.Schema) -> pa.Table:
    arrays = {
        **_place(run, terminals.streams, terminals.steps),
        **_observed(terminals.observations, terminals.images),
    }
    return pa.table([arrays[name] for name in schema.names], schema=schema)


def _place(run: str, streams: np.ndarray, steps: np.ndarray) -> dict[str, pa.Array]:
    return {
        "run": pa.DictionaryArray.from_arrays(np.zeros(len(steps), np.int32), [run]).cast(pa.string()),
        "stream": pa.array(streams.astype(np.int32)),
        "step": pa.array(steps.astype(np.int64)),
    }


def _observed(slots: np.ndarray, images: np.ndarray | None) -> dict[str, pa.Array]:
    observed: dict[str, pa.Array] = {"observation": _vectors(slots)} if slots.shape[1] else {}
    return observed if images is None else {**observed, image_column.IMAGE: image_column.to_column(images)}


def _vectors(values: np.ndarray | None) -> pa.FixedSizeListArray:
    assert values is not None
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
