"""Reads Parquet files, whole or by row groups, into tables and numpy arrays, from a disk or over a network.

Arrow reads in threads of its own. One that holds a Python file, such as those of the Hub are, while the interpreter ends
aborts the process. So the bytes of a Python file are fetched in the thread that asks, and put where only Arrow reads.
"""

import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_READ = ["observation", "image", "action", "reward", "terminated", "truncated", "reference_action"]
_TAIL = 8  # bytes at the end of a Parquet file: the footer's length and a mark


def read_metadata(file: Any) -> pq.FileMetaData:
    """Read the footer of a file."""
    if not isinstance(file, pa.NativeFile):
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        length = int.from_bytes(file.read(_TAIL)[:4], "little")
        file = _fetched(file, max(0, size - _TAIL - length), size)
    return pq.read_metadata(file)


def read_row_group(file: Any, footer: pq.FileMetaData, group: int) -> pa.Table:
    """Read one row group. Its bytes lie together: over the network one read fetches them."""
    if not isinstance(file, pa.NativeFile):
        file = _fetched(file, *_range(footer.row_group(group)))
    with pq.ParquetFile(file, metadata=footer, page_checksum_verification=True) as parquet:
        return parquet.read_row_group(group, columns=_READ).combine_chunks()


def read_table(file: Any, columns: list[str] | None = None) -> pa.Table:
    """Read a whole, small file."""
    if not isinstance(file, pa.NativeFile):
        file = _fetched(file, 0, file.seek(0, os.SEEK_END))
    return pq.read_table(file, columns=columns, page_checksum_verification=True)


def _range(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Where the columns that are read begin and end."""
    columns = [group.column(index) for index in range(group.num_columns)]
    columns = [column for column in columns if column.path_in_schema.partition(".")[0] in _READ]
    starts = [
        min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset) for column in columns
    ]
    ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
    return min(starts), max(ends)


def _fetched(file: Any, start: int, stop: int) -> pa.NativeFile:
    """A file of Arrow's that has these bytes of a Python file at their places, and takes memory for them only."""
    file.seek(start)
    data = file.read(stop - start)
    with os.fdopen(os.memfd_create("parquet"), "wb") as memory:
        memory.seek(start)
        memory.write(data)
        memory.flush()
        return pa.memory_map(f"/proc/self/fd/{memory.fileno()}")  # which holds it open


def column_of(table: pa.Table, name: str) -> pa.Array:
    """A column of a table of one chunk."""
    return table.column(name).chunk(0)


def vectors_of(table: pa.Table, name: str) -> np.ndarray:
    """A column of fixed-size lists as an array of shape (rows, size)."""
    column = column_of(table, name)
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)
