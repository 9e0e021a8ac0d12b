"""Gymnasium spaces as JSON, and as the slots that a Large Decision Model reads and writes.

A space is flattened to *slots* in a fixed order (``Dict`` keys sorted, array elements in C order) and at most one image:

- ``Box`` of numbers: one continuous slot an element;
- ``Discrete``, ``MultiDiscrete``, ``MultiBinary`` and boolean ``Box``: one discrete slot an element, counted from 0. An
  observed value that needs more than ``num_bins`` symbols takes several slots, its base-``num_bins`` digits;
- a ``Box`` that is an image: one uint8 RGB image of a fixed size;
- ``Dict`` and ``Tuple``: their parts, one after another. Texts among the parts of an observation are not read.

``Transitions`` are rows of such slots, as datasets store them and the processor reads them.

Whatever does not fit raises ``UnsupportedSpaceError`` with the reason. This file imports nothing of the package, so that it
can be published beside a checkpoint.
"""

import colorsys
import functools
import json
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ABSENT, CONTINUOUS, DISCRETE = 0, 1, 2
"""What a slot holds; ``ABSENT`` pads the slots of an environment that has fewer than the widest of its batch."""

MAX_OBSERVATION_SLOTS = 128  # paper section 4.3: at most 128 observation dimensions
MAX_ACTION_SLOTS = 28  # paper section 4.3: at most 28 action dimensions
NUM_BINS = 1024  # paper section 4.3: size of the discretisation and of the discrete tables
IMAGE_SIZE = 64  # paper section 4.3: images are resized to 64x64x3

_KINDS = ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Tuple", "Text", "Sequence", "Graph", "OneOf")
_MAX_TEXT = 1024
_MAX_IMAGE_CHANNELS = 16
_MIN_IMAGE_SIDE = 5
_MAX_CHOICES = 2**62  # of an integer that slots can hold: digits are computed in 64 bits


class LDMError(Exception):
    """Base of every error that is raised for a user to act on; the package's other ones are in ``ldm_hf.errors``."""


class UnsupportedSpaceError(LDMError, ValueError):
    """A space that no slot layout can hold; the message says which part, what was found and what the limit is."""


class InvalidValueError(LDMError, ValueError):
    """An observation or action that cannot be flattened: not a number, or a discrete value outside its table."""


def space_to_json(space: Any) -> dict[str, Any]:
    """Describe a Gymnasium space (or an old Gym one: only names and attributes are read) as JSON data.

    Infinite bounds become the strings ``"inf"`` and ``"-inf"``; bounds that are the same everywhere become one number. A
    space whose class is derived from one of Gymnasium's is described as that. Others keep their name and ``repr``.

    Raises:
        UnsupportedSpaceError: a ``Dict`` has keys that are not strings.
    """
    kind = next((base.__name__ for base in type(space).__mro__ if base.__name__ in _KINDS), None)
    if kind == "Box":
        bounds = {"low": _bounds_to_json(space.low), "high": _bounds_to_json(space.high)}
        return {"type": kind, "shape": list(space.shape), "dtype": np.dtype(space.dtype).name, **bounds}
    if kind == "Discrete":
        return {"type": kind, "n": int(space.n), "start": int(getattr(space, "start", 0))}
    if kind == "MultiDiscrete":
        nvec = np.asarray(space.nvec)
        start = np.asarray(getattr(space, "start", np.zeros_like(nvec)))
        return {"type": kind, "nvec": nvec.tolist(), "start": start.tolist(), "dtype": np.dtype(space.dtype).name}
    if kind == "MultiBinary":
        return {"type": kind, "n": int(space.n) if np.ndim(space.n) == 0 else [int(length) for length in space.n]}
    if kind == "Dict":
        for key in space.spaces:
            if not isinstance(key, str):
                raise UnsupportedSpaceError(f"a Dict space has the key {key!r}: keys must be strings")
        return {"type": kind, "spaces": {key: space_to_json(part) for key, part in sorted(space.spaces.items())}}
    if kind in ("Tuple", "OneOf"):
        return {"type": kind, "spaces": [space_to_json(part) for part in space.spaces]}
    if kind == "Text":
        characters = "".join(sorted(space.character_set))
        return {"type": kind, "min_length": space.min_length, "max_length": space.max_length, "charset": characters}
    if kind == "Sequence":
        stack = bool(getattr(space, "stack", False))
        return {"type": kind, "space": space_to_json(space.feature_space), "stack": stack}
    if kind == "Graph":
        edges = None if space.edge_space is None else space_to_json(space.edge_space)
        return {"type": kind, "node_space": space_to_json(space.node_space), "edge_space": edges}
    if isinstance(space.sample(), str):  # minigrid's missions: a space of its own that says nothing of its texts
        return {"type": "Text", "min_length": 0, "max_length": _MAX_TEXT, "charset": string.printable}
    return {"type": type(space).__name__, "repr": repr(space)}


def space_from_json(data: dict[str, Any]) -> Any:
    """Rebuild the Gymnasium space that ``space_to_json`` described; needs ``gymnasium``."""
    try:
        from gymnasium import spaces
    except ImportError as error:
        raise ImportError("Gymnasium spaces need the gymnasium package: pip install gymnasium") from error
    kind = data.get("type")
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
        low, high = (_bounds_from_json(data[key], shape) for key in ("low", "high"))
        return spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(data["nvec"], np.dtype(data["dtype"]).type, start=data["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "Dict":
        return spaces.Dict({key: space_from_json(part) for key, part in data["spaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(part) for part in data["spaces"]])
    if kind == "Text":
        return spaces.Text(data["max_length"], min_length=data["min_length"], charset=data["charset"])
    if kind == "Sequence":
        return spaces.Sequence(space_from_json(data["space"]), stack=data["stack"])
    if kind == "Graph":
        edges = data["edge_space"]
        return spaces.Graph(space_from_json(data["node_space"]), None if edges is None else space_from_json(edges))
    if kind == "OneOf":
        return spaces.OneOf([space_from_json(part) for part in data["spaces"]])
    raise UnsupportedSpaceError(f"a space of type {kind!r} cannot be rebuilt from its description")


def _bounds_to_json(bounds: np.ndarray) -> Any:
    values = np.asarray(bounds).ravel()
    if values.size and (values == values[0]).all():
        return _number_to_json(values[0].item())
    return [_number_to_json(value) for value in values.tolist()]


def _number_to_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _bounds_from_json(bounds: Any, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(bounds, list):
        # Python integers keep int64 and uint64 bounds exact, which floats would not.
        return np.full(shape, float(bounds) if isinstance(bounds, str) else bounds)
    return np.array([float(bound) if isinstance(bound, str) else bound for bound in bounds]).reshape(shape)


@dataclass(frozen=True)
class Leaf:
    """One array of a flattened space: where it is found in a value, and which slots it takes."""

    path: tuple[str | int, ...]
    space: dict[str, Any]
    kind: str  # "continuous", "discrete" or "image"
    shape: tuple[int, ...]
    first_slot: int
    num_slots: int
    cardinality: np.ndarray | None = None  # of a discrete leaf: symbols of each element, flat
    start: np.ndarray | None = None  # of a discrete leaf: its smallest value, flat
    low: np.ndarray | None = None  # of a continuous or image leaf: bounds, flat
    high: np.ndarray | None = None

    @property
    def name(self) -> str:
        """The leaf's place in the space, for messages: ``space['camera'][0]``."""
        return "space" + "".join(f"[{part!r}]" for part in self.path)


@dataclass(frozen=True, eq=False)
class SlotLayout:
    """How one observation or action space maps to slots; made by ``SlotLayout.of``.

    Attributes:
        space: the space as JSON.
        leaves: the arrays of the space in slot order.
        kinds: ``CONTINUOUS`` or ``DISCRETE`` of each slot, int8 of shape (num_slots,).
        cardinality: number of symbols of each discrete slot, 0 for continuous ones, int64 of shape (num_slots,).
        low, high: bounds of each continuous slot (possibly infinite), float64 of shape (num_slots,).
        image_size: side of the image in pixels.
    """

    space: dict[str, Any]
    leaves: tuple[Leaf, ...]
    kinds: np.ndarray
    cardinality: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_bins: int
    image_size: int
    image: Leaf | None = field(default=None)

    @staticmethod
    def of(
        space: Any,
        *,
        role: str = "observation",
        max_slots: int | None = None,
        num_bins: int = NUM_BINS,
        image_size: int = IMAGE_SIZE,
    ) -> "SlotLayout":
        """Lay out a space.

        Args:
            space: a Gymnasium space or its JSON description.
            role: ``"observation"`` or ``"action"``; actions take no image and no value of more than ``num_bins`` symbols.
            max_slots: the limit, by default 128 for observations and 28 for actions (paper section 4.3).
            num_bins: symbols of the discrete table.
            image_size: side of the image in pixels.

        Raises:
            UnsupportedSpaceError: the space does not fit; the message names the part, the count and the limit.
        """
        if role not in ("observation", "action"):
            raise ValueError(f"role must be 'observation' or 'action', got {role!r}")
        if max_slots is None:
            max_slots = MAX_OBSERVATION_SLOTS if role == "observation" else MAX_ACTION_SLOTS
        data = space if isinstance(space, dict) else space_to_json(space)
        return _cached_layout(json.dumps(data, sort_keys=True), role, max_slots, num_bins, image_size)

    @property
    def num_slots(self) -> int:
        """How many scalar slots the space takes; its image is not counted."""
        return len(self.kinds)

    def flatten(self, value: Any, *, batched: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Turn a value of the space into its slots and its image.

        Args:
            value: a value of the space; with ``batched``, every array in it has one more, leading axis of length B.
            batched: whether that axis is there.

        Returns:
            Slots as float32 of shape (num_slots,), and the image as uint8 of shape (image_size, image_size, 3) or None;
            with ``batched`` both have the leading axis. Integers are exact: no slot holds more than ``num_bins``.

        Raises:
            InvalidValueError: a value is not a number, has another shape, or lies outside the discrete table. Infinite
                and out-of-bounds continuous values pass: the discretisation saturates.
        """
        arrays = [self._array(leaf, value, batched) for leaf in self.leaves]
        batch = len(arrays[0]) if arrays else 1
        slots = np.empty((batch, self.num_slots), np.float32)
        image = None
        for leaf, array in zip(self.leaves, arrays, strict=True):
            columns = slice(leaf.first_slot, leaf.first_slot + leaf.num_slots)
            if leaf.kind == "image":
                image = _to_rgb(leaf, array, self.image_size)
            elif leaf.kind == "continuous":
                slots[:, columns] = self._continuous(leaf, array)
            else:
                slots[:, columns] = self._digits(leaf, array)
        if batched:
            return slots, image
        return slots[0], None if image is None else image[0]

    def unflatten(self, slots: np.ndarray) -> Any:
        """Turn slots of shape (num_slots,) back into a value of the space; continuous ones are clipped to its bounds.

        Raises:
            UnsupportedSpaceError: the space holds an image, which cannot be brought back to its size.
        """
        if self.image is not None:
            raise UnsupportedSpaceError(f"{self.image.name} is an image: only spaces of slots can be unflattened")
        row = np.asarray(slots)[None]
        values = {leaf.path: self._values(leaf, row, clip=True)[0] for leaf in self.leaves}
        return _nest(self.space, (), values)

    @property
    def read_space(self) -> dict[str, Any]:
        """What is left of the space in slots and image, as JSON: texts are gone, the image has another size."""
        image = None if self.image is None else self.image.path
        return _read_space(self.space, self.image_size, image, ())

    def values(self, slots: np.ndarray, images: np.ndarray | None = None) -> Any:
        """Turn slots of shape (T, num_slots), and images, back into a batch of values of ``read_space``.

        Nothing is clipped: values outside the declared bounds stay what they were.
        """
        arrays = {
            leaf.path: images if leaf.kind == "image" else self._values(leaf, slots, clip=False) for leaf in self.leaves
        }
        return _nest(self.read_space, (), arrays)

    def _array(self, leaf: Leaf, value: Any, batched: bool) -> np.ndarray:
        for part in leaf.path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError) as error:
                raise InvalidValueError(f"{leaf.name} is missing from the value: got {type(value).__name__}") from error
        array = np.asarray(value)
        if not batched:
            array = array[None]
        if array.shape[1:] != leaf.shape:
            # A scalar space is often answered with shape (1,), and the other way round.
            if math.prod(array.shape[1:]) != math.prod(leaf.shape):
                raise InvalidValueError(f"{leaf.name} has shape {leaf.shape}, got {array.shape[1:]}")
            array = array.reshape(len(array), *leaf.shape)
        return array

    def _continuous(self, leaf: Leaf, array: np.ndarray) -> np.ndarray:
        flat = array.reshape(len(array), -1).astype(np.float32)
        if np.isnan(flat).any():
            element = int(np.isnan(flat).any(0).argmax())
            raise InvalidValueError(f"{leaf.name} is not a number at element {element}: the environment returned NaN")
        return flat

    def _digits(self, leaf: Leaf, array: np.ndarray) -> np.ndarray:
        assert leaf.start is not None and leaf.cardinality is not None
        values = array.reshape(len(array), -1).astype(np.int64) - leaf.start
        widths = [_num_digits(int(n), self.num_bins) for n in leaf.cardinality]
        limits = np.array([self.num_bins**width for width in widths])
        outside = (values < 0) | (values >= limits)
        if outside.any():
            row, element = map(int, np.argwhere(outside)[0])
            first = int(leaf.start[element])
            raise InvalidValueError(
                f"{leaf.name} holds {int(values[row, element]) + first} at element {element}: "
                f"the space declares {first} to {first + int(leaf.cardinality[element]) - 1}"
            )
        columns = [
            values[:, element] // self.num_bins**power % self.num_bins
            for element, width in enumerate(widths)
            for power in reversed(range(width))
        ]
        return np.stack(columns, 1) if columns else np.empty((len(values), 0))

    def _values(self, leaf: Leaf, slots: np.ndarray, *, clip: bool) -> np.ndarray:
        """The leaf's values of T rows of slots, of shape (T, ...)."""
        part = slots[:, leaf.first_slot : leaf.first_slot + leaf.num_slots]
        kind = leaf.space["type"]
        if leaf.kind == "continuous":
            dtype = np.dtype(leaf.space["dtype"])
            numbers = part.astype(np.float64)
            if clip:
                numbers = np.clip(numbers, leaf.low, leaf.high)
            if np.issubdtype(dtype, np.integer):
                numbers = np.rint(numbers)
            return numbers.astype(dtype).reshape(len(slots), *leaf.shape)
        assert leaf.start is not None and leaf.cardinality is not None
        integers, position = np.zeros((len(slots), len(leaf.cardinality)), np.int64), 0
        for index, n in enumerate(leaf.cardinality):
            width = _num_digits(int(n), self.num_bins)
            for digit in part[:, position : position + width].astype(np.int64).T:
                integers[:, index] = integers[:, index] * self.num_bins + digit
            position += width
        integers += leaf.start
        if kind == "Discrete":
            return integers[:, 0]
        dtype = np.dtype({"MultiBinary": "int8"}.get(kind, leaf.space.get("dtype", "int64")))
        return integers.astype(dtype).reshape(len(slots), *leaf.shape)


@functools.lru_cache(maxsize=4096)
def _cached_layout(text: str, role: str, max_slots: int, num_bins: int, image_size: int) -> SlotLayout:
    data = json.loads(text)
    leaves: list[Leaf] = []
    num_slots = 0
    for path, space in walk_space(data):
        if space["type"] == "Text" and path and role == "observation":
            continue
        leaves.append(_leaf(path, space, num_slots, role, max_slots, num_bins))
        num_slots += leaves[-1].num_slots
    images = [leaf for leaf in leaves if leaf.kind == "image"]
    if len(images) > 1:
        raise UnsupportedSpaceError(
            f"the {role} space has {len(images)} images ({', '.join(leaf.name for leaf in images)}); at most one fits"
        )
    if num_slots > max_slots:
        widest = max(leaves, key=lambda leaf: leaf.num_slots)
        hint = f" ({widest.name} alone takes {widest.num_slots})" if len(leaves) > 1 else ""
        raise UnsupportedSpaceError(f"the {role} space takes {num_slots} slots{hint}; the limit is {max_slots}")
    if not num_slots and not images:
        raise UnsupportedSpaceError(f"the {role} space is empty: there is nothing to read or to write")
    kinds, cardinality, low, high = _slot_columns(leaves, num_bins)
    return SlotLayout(
        data, tuple(leaves), kinds, cardinality, low, high, num_bins, image_size, images[0] if images else None
    )


def walk_space(
    space: dict[str, Any], path: tuple[str | int, ...] = ()
) -> list[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """The parts of a space, given as JSON, that hold no others, each with its path, in slot order."""
    if space["type"] == "Dict":
        parts = [((*path, key), part) for key, part in sorted(space["spaces"].items())]
    elif space["type"] == "Tuple":
        parts = [((*path, index), part) for index, part in enumerate(space["spaces"])]
    else:
        return [(path, space)]
    return [leaf for part_path, part in parts for leaf in walk_space(part, part_path)]


def _leaf(
    path: tuple[str | int, ...], space: dict[str, Any], first_slot: int, role: str, max_slots: int, num_bins: int
) -> Leaf:
    kind = space["type"]
    name = Leaf(path, space, "", (), 0, 0).name
    if kind == "Box" and space["dtype"] != "bool":
        shape = tuple(space["shape"])
        small = math.prod(shape) <= max_slots
        # One number that bounds more elements than fit is not unfolded, whatever shape a description claims.
        shapes = [shape if small or isinstance(space[key], list) else () for key in ("low", "high")]
        low, high = (
            _bounds_from_json(space[key], bounds).astype(np.float64).ravel()
            for key, bounds in zip(("low", "high"), shapes, strict=True)
        )
        if _is_image(shape, low, high, max_slots):
            if role == "action":
                raise UnsupportedSpaceError(f"{name} is an image of shape {shape}: actions are slots only")
            return Leaf(path, space, "image", shape, first_slot, 0, low=low, high=high)
        return Leaf(path, space, "continuous", shape, first_slot, math.prod(shape), low=low, high=high)
    if kind == "Box" or kind == "MultiBinary":
        size = space["n"] if kind == "MultiBinary" else space["shape"]
        shape = (size,) if isinstance(size, int) else tuple(size)
        if role == "observation" and _image_axes(shape) is not None and math.prod(shape) > max_slots:
            return Leaf(path, space, "image", shape, first_slot, 0, low=np.zeros(1), high=np.ones(1))
        if math.prod(shape) > max_slots:
            return Leaf(path, space, "discrete", shape, first_slot, math.prod(shape))
        cardinality, start = np.full(math.prod(shape), 2), np.zeros(math.prod(shape), np.int64)
    elif kind == "Discrete":
        shape, cardinality, start = (), np.array([space["n"]]), np.array([space["start"]])
    elif kind == "MultiDiscrete":
        nvec = np.array(space["nvec"], np.int64)
        shape, cardinality, start = nvec.shape, nvec.ravel(), np.array(space["start"], np.int64).ravel()
    else:
        raise UnsupportedSpaceError(
            f"{name} is a {kind} space; a model takes Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple"
        )
    if cardinality.size and not 1 <= cardinality.min() <= cardinality.max() <= _MAX_CHOICES:
        raise UnsupportedSpaceError(
            f"{name} has {cardinality.min()} to {cardinality.max()} choices; 1 to {_MAX_CHOICES} fit"
        )
    if role == "action" and cardinality.size and cardinality.max() > num_bins:
        raise UnsupportedSpaceError(f"{name} has {cardinality.max()} choices; an action slot has at most {num_bins}")
    num_slots = sum(_num_digits(int(n), num_bins) for n in cardinality)
    return Leaf(path, space, "discrete", shape, first_slot, num_slots, cardinality=cardinality, start=start)


def _slot_columns(leaves: list[Leaf], num_bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    kinds: list[int] = []
    cardinality: list[int] = []
    low: list[float] = []
    high: list[float] = []
    for leaf in leaves:
        if leaf.kind == "continuous":
            assert leaf.low is not None and leaf.high is not None
            kinds += [CONTINUOUS] * leaf.num_slots
            cardinality += [0] * leaf.num_slots
            low += leaf.low.tolist()
            high += leaf.high.tolist()
        elif leaf.kind == "discrete":
            assert leaf.cardinality is not None
            for n in leaf.cardinality.tolist():
                width = _num_digits(n, num_bins)
                kinds += [DISCRETE] * width
                cardinality += [n] if width == 1 else [num_bins] * width
                low += [0.0] * width
                high += [cardinality[-1] - 1.0] * width
    return np.array(kinds, np.int8), np.array(cardinality, np.int64), np.array(low), np.array(high)


def _num_digits(n: int, base: int) -> int:
    """How many base-``base`` digits write every value from 0 to n-1; counted in integers, logarithms round."""
    digits = 1
    while base**digits < n:
        digits += 1
    return digits


def _is_image(shape: tuple[int, ...], low: np.ndarray, high: np.ndarray, max_slots: int) -> bool:
    bounded = bool(np.isfinite(low).all() and np.isfinite(high).all())
    return math.prod(shape) > max_slots and bounded and _image_axes(shape) is not None


def _image_axes(shape: tuple[int, ...]) -> tuple[int, int, int | None] | None:
    """The (height, width, channel) axes if an array of this shape can be seen as an image; channels may be missing."""
    if len(shape) == 2 and min(shape) >= _MIN_IMAGE_SIDE:
        return 0, 1, None
    if len(shape) == 3:
        for height, width, channel in ((0, 1, 2), (1, 2, 0)):
            if shape[channel] <= _MAX_IMAGE_CHANNELS and min(shape[height], shape[width]) >= _MIN_IMAGE_SIDE:
                return height, width, channel
    return None


def _to_rgb(leaf: Leaf, array: np.ndarray, size: int) -> np.ndarray:
    """Bring a batch of images of any layout to uint8 RGB of shape (B, size, size, 3).

    One channel is grey, three are RGB, four of uint8 with the channel last are RGBA, of which alpha is dropped. Any other
    number (planes of a board, stacked frames) is mixed from evenly spaced hues, the brightest plane winning a pixel.
    """
    axes = _image_axes(leaf.shape)
    assert axes is not None and leaf.low is not None and leaf.high is not None
    height, width, channel = axes
    if channel is None:
        array, channel = array[..., None], 2
    array = np.moveaxis(array, (height + 1, width + 1, channel + 1), (1, 2, 3))
    channels = array.shape[3]
    if array.dtype != np.uint8 or leaf.low.min() != 0 or leaf.high.max() != 255:
        low, high = float(leaf.low.min()), float(leaf.high.max())
        scaled = (array.astype(np.float32) - low) * (255.0 / max(high - low, 1e-12))
        array = np.rint(np.clip(np.nan_to_num(scaled), 0, 255)).astype(np.uint8)
    elif channels == 4 and axes[2] == 2:
        array = array[..., :3]
    if array.shape[3] == 1:
        array = np.repeat(array, 3, 3)
    elif array.shape[3] != 3:
        hues = np.array([colorsys.hsv_to_rgb(index / channels, 1, 1) for index in range(channels)], np.float32)
        mixed = np.zeros((*array.shape[:3], 3), np.float32)
        for index in range(channels):
            np.maximum(mixed, array[..., index, None] * hues[index], out=mixed)
        array = np.rint(mixed).astype(np.uint8)
    return _resize(array, size)


def _resize(images: np.ndarray, size: int) -> np.ndarray:
    if images.shape[1:3] == (size, size):
        return np.ascontiguousarray(images)
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    # Board-like images are enlarged without blur; larger ones are averaged, so that thin objects stay visible.
    if max(images.shape[1:3]) <= size:
        resized = torch.nn.functional.interpolate(tensor, (size, size), mode="nearest-exact")
    else:
        resized = torch.nn.functional.interpolate(tensor, (size, size), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()


def _nest(space: dict[str, Any], path: tuple[str | int, ...], values: dict[tuple[str | int, ...], Any]) -> Any:
    if space["type"] == "Dict":
        return {key: _nest(part, (*path, key), values) for key, part in space["spaces"].items()}
    if space["type"] == "Tuple":
        return tuple(_nest(part, (*path, index), values) for index, part in enumerate(space["spaces"]))
    return values[path]


def _read_space(
    space: dict[str, Any], image_size: int, image_path: tuple[str | int, ...] | None, path: tuple[str | int, ...]
) -> dict[str, Any]:
    if space["type"] == "Dict":
        named = {key: part for key, part in space["spaces"].items() if part["type"] != "Text"}
        read = {key: _read_space(part, image_size, image_path, (*path, key)) for key, part in named.items()}
        return {"type": "Dict", "spaces": read}
    if space["type"] == "Tuple":
        parts = enumerate(space["spaces"])
        return {"type": "Tuple", "spaces": [_read_space(part, image_size, image_path, (*path, i)) for i, part in parts]}
    if path == image_path:
        return {"type": "Box", "shape": [image_size, image_size, 3], "dtype": "uint8", "low": 0, "high": 255}
    return space


@dataclass(frozen=True, eq=False)
class Transitions:
    """T consecutive transitions of one stream of one environment, as they are stored on disk: nothing is shifted.

    Row t holds what was observed, the action taken there, and what that action brought.

    Attributes:
        observations: slots, float32 of shape (T, S).
        images: uint8 of shape (T, image_size, image_size, 3), or None.
        actions: slots of the action that was taken, float32 of shape (T, A).
        rewards: float32 of shape (T,).
        terminated, truncated: bool of shape (T,).
        reference_actions: slots of the reference action, the training target, float32 of shape (T, A); None in rollout.
    """

    observations: np.ndarray
    images: np.ndarray | None
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    reference_actions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    def __getitem__(self, rows: slice) -> "Transitions":
        parts = {name: None if part is None else part[rows] for name, part in vars(self).items()}
        return Transitions(**parts)  # type: ignore[arg-type]

    @classmethod
    def joined(cls, parts: Sequence["Transitions"]) -> "Transitions":
        """One or more pieces, one after another."""
        columns = [[vars(part)[name] for part in parts] for name in vars(parts[0])]
        return cls(*(None if values[0] is None else np.concatenate(values) for values in columns))  # type: ignore[arg-type]
