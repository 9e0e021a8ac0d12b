"""Infos as workers send them, by key for several environments, in Gymnasium's two forms."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_hf.env_registry.worker.protocol import FLOATS

Columns = dict[Any, Any]
"""Key -> [values, where there is one]; values are an array, a list, or columns again.

Under ``FLOATS`` stand the keys whose values are a number of every environment, with all their values as one array of shape
(keys, environments): most infos are such numbers, and one array is taken apart faster than many.
"""


_MAX_DEPTH = 32  # of dictionaries in dictionaries


def check(columns: Any, size: int, depth: int = 0) -> None:
    """Hold what a worker sent as infos of ``size`` environments against the form above; ``ValueError`` if it has another."""
    if columns is None and not depth:
        return
    if not isinstance(columns, dict) or not all(isinstance(key, str) or key == FLOATS for key in columns):
        raise ValueError("infos are not a map of names")
    if depth > _MAX_DEPTH:
        raise ValueError(f"infos are nested more than {_MAX_DEPTH} deep")
    for key, (first, second) in columns.items():
        if key == FLOATS:
            named = isinstance(first, list) and all(isinstance(name, str) for name in first)
            fits = named and isinstance(second, np.ndarray) and second.shape == (len(first), size)
        else:
            fits = isinstance(second, list) and len(second) == size and all(type(given) is bool for given in second)
            if isinstance(first, dict):
                check(first, size, depth + 1)
            else:
                is_array = isinstance(first, np.ndarray) and first.ndim > 0
                fits = fits and (is_array or isinstance(first, list)) and len(first) == size
        if not fits:
            raise ValueError(f"infos under {key[:50]!r} are not those of {size} environments")


def vector_info(parts: Sequence[tuple[Columns | None, int]]) -> dict[str, Any]:
    """Infos of a vector environment in Gymnasium's form: under each key the values, under ``_key`` where there is one.

    Args:
        parts: infos and number of the environments of each worker, in order.
    """
    info: dict[str, Any] = {}
    given = [(columns or {}, size) for columns, size in parts]
    packed = [columns[FLOATS] for columns, _ in given if FLOATS in columns]
    if len(packed) == len(given) and all(names == packed[0][0] for names, _ in packed):
        matrix = packed[0][1] if len(packed) == 1 else np.concatenate([numbers for _, numbers in packed], axis=1)
        for key, row in zip(packed[0][0], matrix, strict=True):
            info[key], info[f"_{key}"] = row, np.ones(len(row), bool)
        given = [({key: part for key, part in columns.items() if key != FLOATS}, size) for columns, size in given]
    else:
        given = [(_unpacked(columns), size) for columns, size in given]
    keys = {key: None for columns, _ in given for key in columns}
    for key in keys:
        found = [(columns.get(key), size) for columns, size in given]
        info[key] = _merge([(None if column is None else column[0], size) for column, size in found])
        present = [np.zeros(size, bool) if column is None else np.array(column[1], bool) for column, size in found]
        info[f"_{key}"] = np.concatenate(present)
    return info


def row_info(columns: Columns | None, row: int) -> dict[str, Any]:
    """The info of one environment, as its ``step`` would return it."""
    info = {}
    for key, (values, present) in _unpacked(columns).items():
        if present[row]:
            info[key] = row_info(values, row) if isinstance(values, dict) else _scalar(values[row])
    return info


def _unpacked(columns: Columns | None) -> Columns:
    """Columns whose numbers stand under their own keys."""
    if not columns or FLOATS not in columns:
        return columns or {}
    keys, matrix = columns[FLOATS]
    numbers = {key: [row, [True] * len(row)] for key, row in zip(keys, matrix, strict=True)}
    return {**numbers, **{key: part for key, part in columns.items() if key != FLOATS}}


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
        rows = [row_info(values, row) for row in range(size)] if isinstance(values, dict) else values
        for index, value in enumerate(rows if rows is not None else ()):
            merged[start + index] = _scalar(value)
        start += size
    return merged
