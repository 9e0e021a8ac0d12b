"""Infos as workers send them, by key for several environments, in Gymnasium's two forms."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Columns = dict[str, Any]
"""Key -> [values, where there is one]; values are an array, a list, or columns again."""


def vector_info(parts: Sequence[tuple[Columns | None, int]]) -> dict[str, Any]:
    """Infos of a vector environment in Gymnasium's form: under each key the values, under ``_key`` where there is one.

    Args:
        parts: infos and number of the environments of each worker, in order.
    """
    keys = {key: None for columns, _ in parts if columns for key in columns}
    info: dict[str, Any] = {}
    for key in keys:
        given = [(columns[key] if columns and key in columns else None, size) for columns, size in parts]
        info[key] = _merge([(None if column is None else column[0], size) for column, size in given])
        present = [np.zeros(size, bool) if column is None else np.array(column[1], bool) for column, size in given]
        info[f"_{key}"] = np.concatenate(present)
    return info


def row_info(columns: Columns | None, row: int) -> dict[str, Any]:
    """The info of one environment, as its ``step`` would return it."""
    info = {}
    for key, (values, present) in (columns or {}).items():
        if present[row]:
            info[key] = row_info(values, row) if isinstance(values, dict) else _scalar(values[row])
    return info


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _merge(parts: list[tuple[Any, int]]) -> Any:
    found = [values for values, _ in parts if values is not None]
    if all(isinstance(values, dict) for values in found):
        return vector_info(parts)
    first = found[0]
    if isinstance(first, np.ndarray) and all(
        isinstance(values, np.ndarray) and values.shape[1:] == first.shape[1:] for values in found
    ):
        if len(parts) == 1:
            return first
        return np.concatenate(
            [np.zeros((size, *first.shape[1:]), first.dtype) if values is None else values for values, size in parts]
        )
    merged = np.full(sum(size for _, size in parts), None, object)
    start = 0
    for values, size in parts:
        for index, value in enumerate(() if values is None or isinstance(values, dict) else values):
            merged[start + index] = _scalar(value)
        start += size
    return merged
