"""Observations as Stable-Baselines3 reads them: one array, or a ``Dict`` of arrays one level deep."""

import math
from typing import Any

import numpy as np

from ldm_hf.env_registry.worker.space_tree import at, has_bytes, is_byte_image, leaves
from ldm_hf.errors import UnsupportedSpaceError
from ldm_hf.modeling.spaces_ldm import space_from_json, space_to_json

Path = tuple[str | int, ...]
"""Keys of a ``Dict`` and places in a ``Tuple``, from the outside in."""

_UNREAD = ("Text",)  # parts that neither a reference policy nor a model reads
_ARRAYS = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")


def flat_space_json(space: dict[str, Any]) -> dict[str, Any]:
    """The space, given and returned as JSON, that values of another have after ``FlatObservations.flatten``.

    ``Dict`` and ``Tuple`` spaces become one ``Dict`` whose keys are the paths of the parts, joined by slashes; texts are
    left out; numbers without an axis get one; ``Discrete`` values count from 0; bytes that are too few for an image
    become a vector, because Stable-Baselines3 takes them for one. No two parts have the same key.

    Raises:
        UnsupportedSpaceError: a part is none of these, or nothing is left.
    """
    if space["type"] not in ("Dict", "Tuple"):
        return _leaf(space, "the observation")
    parts = _read_parts(space)
    if not parts:
        raise UnsupportedSpaceError("the observation holds nothing but texts")
    keys = _keys([path for path, _ in parts])
    return {"type": "Dict", "spaces": {key: _leaf(part, key) for key, (_, part) in zip(keys, parts, strict=True)}}


class FlatObservations:
    """Turns values of an observation space into flat ones.

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
        self._keys = _keys([path for path, _ in self._leaves])
        self.space = space if self._is_flat else space_from_json(flat)

    def flatten(self, value: Any) -> Any:
        """The flat form of a value, or of a batch of them."""
        if self._is_flat:
            return value
        if not self._nested:
            return _flatten_leaf(self._leaves[0][1], value)
        return {
            key: _flatten_leaf(leaf, at(value, path))
            for key, (path, leaf) in zip(self._keys, self._leaves, strict=True)
        }


def _keys(paths: list[Path]) -> list[str]:
    """A key of its own for each part: keys and separators of a space may look alike."""
    keys: list[str] = []
    for path in paths:
        key = "/".join(map(str, path)).replace(".", "_")  # PyTorch names modules after keys, and allows no dots in them
        while key in keys:
            key += "_"
        keys.append(key)
    return keys


def _leaf(space: dict[str, Any], name: str) -> dict[str, Any]:
    if space["type"] not in _ARRAYS:
        raise UnsupportedSpaceError(f"{name} is a {space['type']} space, which no algorithm reads")
    if space["type"] == "MultiDiscrete" and (np.ndim(space["nvec"]) > 1 or np.any(space["start"])):
        raise UnsupportedSpaceError(f"{name} is a MultiDiscrete space of several axes, or does not start at 0")
    if space["type"] == "Box" and not space["shape"]:
        return {**space, "shape": [1]}
    if _is_no_image(space):
        return {**space, "shape": [math.prod(space["shape"])]}
    if space["type"] == "Discrete":
        return {**space, "start": 0}
    return space


def _read_parts(space: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    return [(path, part) for path, part in leaves(space) if part["type"] not in _UNREAD]


def _is_no_image(space: dict[str, Any]) -> bool:
    return has_bytes(space) and not is_byte_image(space)


def _flatten_leaf(space: dict[str, Any], value: Any) -> Any:
    if space["type"] == "Box" and not space["shape"]:
        return np.asarray(value)[..., None]
    if _is_no_image(space):
        return np.asarray(value).reshape(*np.shape(value)[:-3], -1)
    if space["type"] == "Discrete" and space["start"]:
        return np.asarray(value) - space["start"]
    return np.asarray(value)
