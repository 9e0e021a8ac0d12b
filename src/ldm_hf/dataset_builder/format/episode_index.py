"""Where the episodes of a run lie among its transitions: an index for those who read with plain ``datasets``."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldm_hf.dataset_builder.format.schema import METADATA_KEY, RunInfo
from ldm_hf.modeling.spaces_ldm import Transitions

Resets = Sequence[int] | Mapping[int, Sequence[int]]

SCHEMA = pa.schema(
    [
        pa.field("run", pa.string(), False),
        pa.field("stream", pa.int32(), False),
        pa.field("episode", pa.int32(), False),
        pa.field("step", pa.int64(), False),
        pa.field("length", pa.int64(), False),
        pa.field("return", pa.float64(), False),
        pa.field("terminated", pa.bool_(), False),
        pa.field("truncated", pa.bool_(), False),
        pa.field("resets", pa.int32(), False),
    ]
)
"""Columns of the index; ``docs/dataset_format.md`` says what they mean."""


class EpisodeIndex:
    """The episodes of streams that are added piece by piece, in any order.

    Args:
        resets: steps before which the algorithm reset all streams, in order, or a mapping that has them for each stream;
            the first reset is before step 0.
    """

    def __init__(self, resets: Resets) -> None:
        self._resets = resets
        self._pieces: dict[int, list[tuple[int, np.ndarray, np.ndarray]]] = {}

    def add(self, stream: int, start: int, transitions: Transitions) -> None:
        """Add the transitions of a stream from a step on."""
        # Copies, or whatever lies in the same memory would stay with them.
        ends = transitions.terminated.astype(np.int8) + 2 * transitions.truncated.astype(np.int8)
        self._pieces.setdefault(stream, []).append((start, transitions.rewards.astype(np.float32), ends))

    def table(self, run: str) -> pa.Table:
        """One row per episode, sorted by stream and step."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in SCHEMA.names[1:]}
        for stream, pieces in sorted(self._pieces.items()):
            pieces.sort(key=lambda piece: piece[0])
            rewards, ends = (np.concatenate([piece[part] for piece in pieces]) for part in (1, 2))
            stops = np.unique([*(np.flatnonzero(ends) + 1), len(ends)])
            starts = np.array([0, *stops[:-1]])
            columns["stream"].append(np.full(len(stops), stream))
            columns["episode"].append(np.arange(len(stops)))
            columns["step"].append(starts)
            columns["length"].append(stops - starts)
            columns["return"].append(np.add.reduceat(rewards.astype(np.float64), starts))
            columns["terminated"].append((ends[stops - 1] & 1).astype(bool))
            columns["truncated"].append((ends[stops - 1] & 2).astype(bool))
            resets = Counter(self._resets[stream] if isinstance(self._resets, Mapping) else self._resets)
            columns["resets"].append(np.array([resets[start] for start in starts.tolist()]))
        arrays = {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in columns.items()}
        rows = len(arrays["stream"])
        return pa.table([[run] * rows, *(pa.array(arrays[field.name]).cast(field.type) for field in list(SCHEMA)[1:])],
                        schema=SCHEMA)  # fmt: skip

    def write(self, path: Path, info: RunInfo) -> None:
        """Write the index to a file."""
        table = self.table(info.run).replace_schema_metadata({METADATA_KEY: info.to_json().encode()})
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)
