"""Reads row groups of Parquet files into numpy arrays, from a disk or over a network."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_READ = ["observation", "image", "action", "reward", "terminated", "truncated", "reference_action"]


def read_row_group(file: Any, footer: pq.FileMetaData, group: int) -> pa.Table:
    """Read one row group. Its bytes lie together: over the network one read fetches them."""
    native = isinstance(file, pa.NativeFile)
    if not native:
        file = _fetched(file, footer.row_group(group))
    with pq.ParquetFile(file, metadata=footer, page_checksum_verification=True) as parquet:
        # A thread of Arrow's that still holds a Python object when the interpreter ends would abort it.
        return parquet.read_row_group(group, columns=_READ, use_threads=native).combine_chunks()


def _fetched(file: Any, group: pq.RowGroupMetaData) -> "_Window":
    columns = [group.column(index) for index in range(group.num_columns)]
    columns = [column for column in columns if column.path_in_schema.partition(".")[0] in _READ]
    starts = [
        min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset) for column in columns
    ]
    ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
    file.seek(min(starts))
    return _Window(file.read(max(ends) - min(starts)), min(starts))


class _Window(io.RawIOBase):
    """A file of which only a part is at hand."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._start, self._position = memoryview(data), start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._start + len(self._data)}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        first = self._position - self._start
        last = len(self._data) if size < 0 else first + size
        if first < 0:
            raise OSError(f"bytes {self._position} to {self._position + size} are not at hand")
        data = bytes(self._data[first:last])
        self._position += len(data)
        return data


def column_of(table: pa.Table, name: str) -> pa.Array:
    """A column of a table of one chunk."""
    return table.column(name).chunk(0)


def vectors_of(table: pa.Table, name: str) -> np.ndarray:
    """A column of fixed-size lists as an array of shape (rows, size)."""
    column = column_of(table, name)
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)
