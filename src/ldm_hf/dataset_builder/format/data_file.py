"""One data file: what its manifest says of it, and its footer, once that is seen to say the same."""

import functools
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_hf.dataset_builder.format.image_column import FIELD, OLD_FIELD
from ldm_hf.dataset_builder.format.row_groups import read_metadata
from ldm_hf.dataset_builder.format.schema import RunInfo, arrow_schema
from ldm_hf.dataset_builder.format.storage import Storage
from ldm_hf.errors import DatasetFormatError, HubError, one_line
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
    if not any(schema.equals(arrow_schema(*layouts, info, image)) for image in (FIELD, OLD_FIELD)):
        raise DatasetFormatError(f"{file.where} has columns that do not fit its spaces: {', '.join(schema.names)}")
    if tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)) != file.chunks:
        raise DatasetFormatError(f"{file.where} has other chunks than its manifest says")
    _check_places(file, metadata, schema.names.index("stream"), schema.names.index("step"))
    return metadata


def _check_places(file: DataFile, metadata: pq.FileMetaData, stream: int, step: int) -> None:
    """Whether each chunk can be consecutive steps of one stream, by the statistics that its footer has anyway."""
    row = 0
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group)
        streams, steps = chunk.column(stream).statistics, chunk.column(step).statistics
        known = streams is not None and steps is not None and streams.has_min_max and steps.has_min_max
        if not known or streams.min != streams.max or steps.max - steps.min != chunk.num_rows - 1:
            raise DatasetFormatError(
                f"{file.where}, row {row}: the {chunk.num_rows} rows from there are no consecutive steps of one stream"
            )
        row += chunk.num_rows


def read_footer(storage: Storage, path: str) -> tuple[pq.FileMetaData, pa.Schema]:
    """The footer of a Parquet file; ``DatasetFormatError`` if it has none."""
    try:
        metadata = storage.read(path, read_metadata)
        return metadata, metadata.schema.to_arrow_schema()
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, DatasetFormatError | HubError):
            raise
        raise DatasetFormatError(
            f"{storage.where(path)} is not a whole Parquet file (truncated or foreign): {one_line(error, 200)}"
        ) from error
