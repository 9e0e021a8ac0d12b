"""One data file: what its manifest says of it, and its footer, once that is seen to say the same."""

import functools
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_hf.dataset_builder.schema import RunInfo, arrow_schema
from ldm_hf.dataset_builder.storage import Storage
from ldm_hf.errors import DatasetFormatError, HubError
from ldm_hf.modeling.spaces_ldm import SlotLayout

_OPEN_FOOTERS = 128  # of data files that a process remembers; the file of a million transitions has one of about 100 kB


@dataclass(frozen=True, eq=False)
class DataFile:
    """One file of transitions.

    Attributes:
        storage: where it lies.
        path: in the storage.
        info: of the run that it belongs to.
        chunks: transitions of its chunks.
    """

    storage: Storage
    path: str
    info: RunInfo
    chunks: tuple[int, ...]

    @property
    def where(self) -> str:
        """How messages name it."""
        return self.storage.where(self.path)


@functools.lru_cache(_OPEN_FOOTERS)
def checked_footer(file: DataFile) -> pq.FileMetaData:
    """The footer of a file, once it is seen to be what the manifest says.

    Raises:
        DatasetFormatError: it is not.
        HubError: it cannot be had from the Hub.
    """
    metadata, schema = read_footer(file.storage, file.path)
    if RunInfo.from_metadata(schema.metadata, file.where) != file.info:
        raise DatasetFormatError(
            f"{file.where} says other things of its run than the manifest: one of them is damaged or old"
        )
    info = file.info
    layouts = SlotLayout.of(info.observation_space), SlotLayout.of(info.action_space, role="action")
    if not schema.equals(arrow_schema(*layouts, info)):
        raise DatasetFormatError(f"{file.where} has columns that do not fit its spaces: {', '.join(schema.names)}")
    if tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)) != file.chunks:
        raise DatasetFormatError(f"{file.where} has other chunks than its manifest says")
    return metadata


def read_footer(storage: Storage, path: str) -> tuple[pq.FileMetaData, pa.Schema]:
    """The footer of a Parquet file; ``DatasetFormatError`` if it has none."""
    try:
        metadata = storage.read(path, pq.read_metadata)
        return metadata, metadata.schema.to_arrow_schema()
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, DatasetFormatError | HubError):
            raise
        raise DatasetFormatError(
            f"{storage.where(path)} is no whole Parquet file (truncated or foreign): {one_line(error)}"
        ) from error


def one_line(error: Exception) -> str:
    """What an error says, short enough for a message."""
    return " ".join(str(error).split())[:200]
