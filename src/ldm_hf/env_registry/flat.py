"""Observations as Stable-Baselines3 reads them: one array, or a ``Dict`` of arrays one level deep."""

from typing import Any

import numpy as np

from ldm_hf.errors import UnsupportedSpaceError
from ldm_hf.modeling.spaces_ldm import space_from_json, space_to_json, walk_space

_UNREAD = ("Text",)  # parts that neither a reference policy nor a model reads
_ARRAYS = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")


def flat_space_json(space: dict[str, Any]) -> dict[str, Any]:
    """The space, given and returned as JSON, that values of another have after ``FlatObservations.flatten``.

    ``Dict`` and ``Tuple`` spaces become one ``Dict`` whose keys are the paths of the parts, joined by slashes; texts are
    left out; numbers without an axis get one; ``Discrete`` values count from 0.

    Raises:
        UnsupportedSpaceError: a part is none of these, or nothing is left.
    """
    if space["type"] not in ("Dict", "Tuple"):
        return _leaf(space, "the observation")
    parts = {_key(path): _leaf(part, _key(path)) for path, part in _read_parts(space)}
    if not parts:
        raise UnsupportedSpaceError("the observation holds nothing but texts")
    return {"type": "Dict", "spaces": parts}


class FlatObservations:
    """Turns values of an observation space into flat ones, and back.

    Attributes:
        space: the Gymnasium space of flat observations; the given one where it is flat already.
    """

    def __init__(self, space: Any) -> None:
        """Take a Gymnasium space; raises ``UnsupportedSpaceError`` as ``flat_space_json``."""
        described = space_to_json(space)
        flat = flat_space_json(described)
        self._is_flat = flat == described
        self._nested = described["type"] in ("Dict", "Tuple")
        self._leaves = _read_parts(described) if self._nested else [((), described)]
        self.space = space if self._is_flat else space_from_json(flat)

    def flatten(self, value: Any) -> Any:
        """The flat form of a value, or of a batch of them."""
        if self._is_flat:
            return value
        if not self._nested:
            return _flatten_leaf(self._leaves[0][1], value)
        return {_key(path): _flatten_leaf(leaf, _part(value, path)) for path, leaf in self._leaves}

    def restore(self, flat: Any) -> Any:
        """The value that was flattened, as nested dictionaries by key or index, without its texts."""
        if self._is_flat:
            return flat
        if not self._nested:
            return _restore_leaf(self._leaves[0][1], flat)
        restored: dict[Any, Any] = {}
        for path, leaf in self._leaves:
            level = restored
            for part in path[:-1]:
                level = level.setdefault(part, {})
            level[path[-1]] = _restore_leaf(leaf, flat[_key(path)])
        return _with_indices(restored)


def _key(path: tuple[str, ...]) -> str:
    return "/".join(path).replace(".", "_")  # PyTorch names modules after keys, and allows no dots in them


def _leaf(space: dict[str, Any], name: str) -> dict[str, Any]:
    if space["type"] not in _ARRAYS:
        raise UnsupportedSpaceError(f"{name} is a {space['type']} space, which no algorithm reads")
    if space["type"] == "MultiDiscrete" and (np.ndim(space["nvec"]) > 1 or np.any(space["start"])):
        raise UnsupportedSpaceError(f"{name} is a MultiDiscrete space of several axes, or does not start at 0")
    if space["type"] == "Box" and not space["shape"]:
        return {**space, "shape": [1]}
    if space["type"] == "Discrete":
        return {**space, "start": 0}
    return space


def _read_parts(space: dict[str, Any]) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    return [(tuple(map(str, path)), part) for path, part in walk_space(space) if part["type"] not in _UNREAD]


def _part(value: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        value = value[int(part)] if isinstance(value, tuple | list) else value[part]
    return value


def _flatten_leaf(space: dict[str, Any], value: Any) -> Any:
    if space["type"] == "Box" and not space["shape"]:
        return np.asarray(value)[..., None]
    if space["type"] == "Discrete" and space["start"]:
        return np.asarray(value) - space["start"]
    return np.asarray(value)


def _restore_leaf(space: dict[str, Any], value: Any) -> Any:
    if space["type"] == "Box" and not space["shape"]:
        return value[..., 0]
    if space["type"] == "Discrete":
        return value + space["start"]
    return value


def _with_indices(value: Any) -> Any:
    """Levels whose keys are 0, 1, 2, ... were tuples: their parts are found by number as well."""
    if not isinstance(value, dict):
        return value
    parts = {key: _with_indices(part) for key, part in value.items()}
    return parts | {int(key): part for key, part in parts.items() if key.isdecimal()}
