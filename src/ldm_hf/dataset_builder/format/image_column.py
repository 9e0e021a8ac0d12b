"""Images in data files: a column that ``datasets`` shows as ``Image``, and that is read as fast as raw bytes.

An image is stored as an uncompressed image file, binary PPM: a short header, then its raw bytes, all of which zstd packs.
What decodes images shows it; our reader steps over the headers and decodes nothing.
"""

import json

import numpy as np
import pyarrow as pa

from ldm_hf.modeling.spaces_ldm import IMAGE_SIZE

IMAGE = "image"
FIELD = pa.field(IMAGE, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
"""How ``datasets`` stores an ``Image``; the path is null."""

OLD_FIELD = pa.field(IMAGE, pa.binary(), False)
"""Of files of format version 2: raw bytes only."""

FEATURES = {b"huggingface": json.dumps({"info": {"features": {IMAGE: {"_type": "Image"}}}}).encode()}
"""Schema metadata by which ``datasets`` knows the column."""

_HEADER = f"P6\n{IMAGE_SIZE} {IMAGE_SIZE}\n255\n".encode()
_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3


def to_column(images: np.ndarray) -> pa.StructArray:
    """Images, uint8 of shape (N, IMAGE_SIZE, IMAGE_SIZE, 3), as a column."""
    files = np.empty((len(images), len(_HEADER) + _BYTES), np.uint8)
    files[:, : len(_HEADER)] = np.frombuffer(_HEADER, np.uint8)
    files[:, len(_HEADER) :] = images.reshape(len(images), -1)
    offsets = np.arange(len(files) + 1, dtype=np.int32) * np.int32(files.shape[1])
    data = pa.BinaryArray.from_buffers(pa.binary(), len(files), [None, pa.py_buffer(offsets), pa.py_buffer(files)])
    return pa.StructArray.from_arrays([data, pa.nulls(len(files), pa.string())], fields=list(FIELD.type))


def from_column(column: pa.Array) -> np.ndarray | None:
    """The images of a column, uint8 of shape (N, IMAGE_SIZE, IMAGE_SIZE, 3), as a view; None if it holds anything else."""
    header = b"" if column.type == OLD_FIELD.type else _HEADER
    data = column if not header else column.field("bytes")
    content = np.frombuffer(data.buffers()[2] or b"", np.uint8)
    if column.null_count or data.null_count or data.offset or content.size != len(data) * (len(header) + _BYTES):
        return None
    files = content.reshape(len(data), -1)
    if (files[:, : len(header)] != np.frombuffer(header, np.uint8)).any():
        return None
    # A view of all rows behind their headers: reshaping that would copy it.
    shape = (len(files), IMAGE_SIZE, IMAGE_SIZE, 3)
    strides = (files.strides[0], 3 * IMAGE_SIZE, 3, 1)
    return np.lib.stride_tricks.as_strided(files[:, len(header) :], shape, strides, writeable=False)
