"""Writes an environment's files, and the manifest and card of a library's dataset repository."""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldm_hf.dataset_builder.reader import open_dataset
from ldm_hf.dataset_builder.schema import CHUNK_LENGTH, RunInfo, arrow_schema
from ldm_hf.errors import DatasetFormatError
from ldm_hf.files import remove_leftovers, replacing
from ldm_hf.modeling.processing_ldm import Transitions
from ldm_hf.modeling.spaces_ldm import SlotLayout

_ROWS_PER_FILE = 2**20


@dataclass(frozen=True)
class ChunkRange:
    """Transitions ``start`` to ``stop`` of a stream."""

    stream: int
    start: int
    stop: int


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
    progress: Callable[[int], None] = lambda rows: None,
) -> list[Path]:
    """Write chunks in the order given, one row group each, as ``train-<i>-of-<n>.parquet``.

    Args:
        folder: where to; it must exist.
        info: goes into every file.
        chunks: which transitions.
        read: gives the transitions of a chunk, reference actions included.
        progress: called with the number of rows written.
    """
    schema = arrow_schema(SlotLayout.of(info.observation_space), SlotLayout.of(info.action_space, role="action"), info)
    files = list(_split(chunks))
    paths, rows = [], 0
    for index, part in enumerate(files):
        path = folder / f"train-{index:05d}-of-{len(files):05d}.parquet"
        with pq.ParquetWriter(path, schema, **_encoding(schema)) as writer:
            for chunk in part:
                writer.write_table(_table(chunk, read(chunk), schema), row_group_size=CHUNK_LENGTH)
                rows += chunk.stop - chunk.start
                progress(rows)
        paths.append(path)
    return paths


def update_repository(repository: Path) -> None:
    """Rewrite the manifest and the card of a library's dataset repository from the files that are there.

    Raises:
        DatasetFormatError: there are none, or one is damaged, foreign or missing.
    """
    remove_leftovers(repository)
    rows = []
    for folder in sorted(path.parent for path in repository.glob("*/train-00000-of-*.parquet")):
        files = sorted(folder.glob("train-*.parquet"))
        info = open_dataset(folder).info
        listed = [
            {"path": f"{folder.name}/{file.name}", "bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in files
        ]
        scores = {name: getattr(info, name) for name in ("first10", "last10", "deterministic_return")}
        rows.append(
            {
                "environment": info.environment,
                "config": folder.name,
                "rows": info.num_transitions,
                **scores,
                "algorithm": info.algorithm,
                "observations": _describe(info.observation_space),
                "actions": _describe(info.action_space),
                "files": listed,
                "info": info.to_json(),
            }
        )
    if not rows:
        raise DatasetFormatError(f"{repository} holds no datasets: there is no <config>/train-*.parquet in it")
    with replacing(repository / "manifest.parquet") as path:
        pq.write_table(pa.Table.from_pylist(rows), path, write_page_checksum=True)
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        resources.files("ldm_hf.dataset_builder").joinpath("dataset_card.md").read_text()
    )
    with replacing(repository / "README.md") as path:
        path.write_text(template.render(library=repository.name, rows=rows, size=sum(row["rows"] for row in rows)))


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
    leaves = [f"{name}.list.element" for name in floats] + ["reward"]
    return {
        "compression": "zstd",
        "use_dictionary": ["stream"],  # It slows down images and gains nothing on floats.
        "column_encoding": dict.fromkeys(leaves, "BYTE_STREAM_SPLIT"),
        "write_page_checksum": True,
    }


def _table(chunk: ChunkRange, transitions: Transitions, schema: pa.Schema) -> pa.Table:
    length = chunk.stop - chunk.start
    arrays = {
        "stream": pa.array(np.full(length, chunk.stream, np.int32)),
        "step": pa.array(np.arange(chunk.start, chunk.stop)),
        "action": _vectors(transitions.actions),
        "reward": pa.array(transitions.rewards.astype(np.float32)),
        "terminated": pa.array(transitions.terminated),
        "truncated": pa.array(transitions.truncated),
        "reference_action": _vectors(transitions.reference_actions),
    }
    if "observation" in schema.names:
        arrays["observation"] = _vectors(transitions.observations)
    if transitions.images is not None:
        arrays["image"] = _pictures(transitions.images)
    return pa.table([arrays[name] for name in schema.names], schema=schema)


def _vectors(values: np.ndarray | None) -> pa.FixedSizeListArray:
    assert values is not None
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _pictures(images: np.ndarray) -> pa.BinaryArray:
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * np.int32(flat.shape[1])
    return pa.BinaryArray.from_buffers(pa.binary(), len(flat), [None, pa.py_buffer(offsets), pa.py_buffer(flat)])


def _describe(space: dict[str, Any]) -> str:
    """A space in a few words, for a table."""
    kind = space["type"]
    if kind == "Dict":
        return f"Dict({', '.join(f'{name}: {_describe(part)}' for name, part in space['spaces'].items())})"
    if kind == "Tuple":
        return f"Tuple({', '.join(map(_describe, space['spaces']))})"
    size = space["shape"] if kind == "Box" else space["nvec"] if kind == "MultiDiscrete" else space["n"]
    return f"{kind}({' x '.join(map(str, size)) if isinstance(size, list) else size})"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
