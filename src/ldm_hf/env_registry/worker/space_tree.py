"""Spaces as JSON data, and their values taken apart into arrays and put together: for workers and for what starts them.

``ldm_hf.modeling.spaces_ldm`` has a copy of what a checkpoint needs of this, because it is published with checkpoints; a
test holds that both say the same. Gymnasium's spaces and old Gym's are described alike: by the names of their classes and of
their bases, and by their attributes.

This file is copied beside ``main.py`` into isolated installations: Python 3.7 with only numpy must run it.
"""

import math
import string

import numpy as np

KINDS = ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Tuple", "Text", "Sequence", "Graph", "OneOf")

MAX_TEXT = 1024
"""Length of texts whose space does not say how long they are."""


MAX_NUMBERS = 128  # that a model reads one by one (paper section 4.3)
MIN_IMAGE_SIDE = 5
MAX_IMAGE_CHANNELS = 16


class SpaceError(Exception):
    """A space that cannot be described."""


def describe(space):
    """A Gymnasium space (or an old Gym one) as JSON data.

    Infinite bounds become the strings ``"inf"`` and ``"-inf"``; bounds that are the same everywhere become one number. A
    space whose class is derived from one of Gymnasium's is described as that. Others keep their name and ``repr``.

    Raises:
        SpaceError: a ``Dict`` has keys that are not strings.
    """
    kind = next((base.__name__ for base in type(space).__mro__ if base.__name__ in KINDS), None)
    if kind == "Box":
        bounds = {"low": _bounds(space.low, space.shape), "high": _bounds(space.high, space.shape)}
        return dict({"type": kind, "shape": list(space.shape), "dtype": np.dtype(space.dtype).name}, **bounds)
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
                raise SpaceError("a Dict space has the key {!r}: keys must be strings".format(key))
        return {"type": kind, "spaces": {key: describe(part) for key, part in sorted(space.spaces.items())}}
    if kind in ("Tuple", "OneOf"):
        return {"type": kind, "spaces": [describe(part) for part in space.spaces]}
    if kind == "Text":
        characters = "".join(sorted(space.character_set))
        return {"type": kind, "min_length": space.min_length, "max_length": space.max_length, "charset": characters}
    if kind == "Sequence":
        return {"type": kind, "space": describe(space.feature_space), "stack": bool(getattr(space, "stack", False))}
    if kind == "Graph":
        edges = None if space.edge_space is None else describe(space.edge_space)
        return {"type": kind, "node_space": describe(space.node_space), "edge_space": edges}
    if isinstance(space.sample(), str):  # minigrid's missions: a space of its own that says nothing of its texts
        return {"type": "Text", "min_length": 0, "max_length": MAX_TEXT, "charset": string.printable}
    return {"type": type(space).__name__, "repr": repr(space)}


def leaves(space, path=()):
    """The parts of a space's description that are neither ``Dict`` nor ``Tuple``, as (path, description), in order.

    Keys of a ``Dict`` are sorted; this order is the order of slots.
    """
    if space["type"] == "Dict":
        found = [leaves(part, path + (key,)) for key, part in sorted(space["spaces"].items())]
    elif space["type"] == "Tuple":
        found = [leaves(part, path + (index,)) for index, part in enumerate(space["spaces"])]
    else:
        return [(path, space)]
    return [leaf for part in found for leaf in part]


def array_format(space):
    """Shape and dtype of the values of a leaf, or None where they have no fixed size."""
    kind = space["type"]
    if kind == "Box":
        return tuple(space["shape"]), np.dtype(space["dtype"])
    if kind == "Discrete":
        return (), np.dtype(np.int64)
    if kind == "MultiDiscrete":
        return np.shape(space["nvec"]), np.dtype(space["dtype"])
    if kind == "MultiBinary":
        return (tuple(space["n"]) if isinstance(space["n"], list) else (space["n"],)), np.dtype(np.int8)
    return None


def image_axes(space):
    """The axes of height, width and channels of a leaf that is an image, channels None where there are none; None of others.

    An image is a ``Box`` with bounds, or a ``MultiBinary``, of more numbers than a model reads one by one, with two axes or
    three, one of them short, that can be seen as an image. What a model takes for an image is exactly this.
    """
    found = array_format(space)
    if found is None or space["type"] not in ("Box", "MultiBinary") or int(np.prod(found[0])) <= MAX_NUMBERS:
        return None
    if space["type"] == "Box" and not all(_is_bounded(space[key]) for key in ("low", "high")):
        return None
    shape = found[0]
    if len(shape) == 2 and min(shape) >= MIN_IMAGE_SIDE:
        return 0, 1, None
    if len(shape) == 3:
        for height, width, channel in ((0, 1, 2), (1, 2, 0)):
            if shape[channel] <= MAX_IMAGE_CHANNELS and min(shape[height], shape[width]) >= MIN_IMAGE_SIDE:
                return height, width, channel
    return None


def is_byte_image(space):
    """Whether a leaf is an image of three axes of uint8 from 0 to 255, such as Stable-Baselines3 reads by convolutions."""
    return image_axes(space) is not None and has_bytes(space)


def has_bytes(space):
    """Whether a leaf has three axes of uint8 from 0 to 255: what Stable-Baselines3 takes for an image, however small."""
    if space["type"] != "Box" or space["dtype"] != "uint8" or len(space["shape"]) != 3:
        return False
    return space["low"] == 0 and space["high"] == 255


def at(value, path):
    """What stands at the path of a leaf in a value of a space, or in a batch of them."""
    for part in path:
        value = value[part]
    return value


def split(space, value):
    """The leaves of a value of a space (one, or a batch), in the order of ``leaves``."""
    return [at(value, path) for path, _ in leaves(space)]


def join(space, parts):
    """The value whose leaves an iterator gives, in the order of ``leaves``: dictionaries and tuples of them."""
    if space["type"] == "Dict":
        return {key: join(part, parts) for key, part in sorted(space["spaces"].items())}
    if space["type"] == "Tuple":
        return tuple([join(part, parts) for part in space["spaces"]])
    return next(parts)


def _is_bounded(bounds):
    numbers = bounds if isinstance(bounds, list) else [bounds]
    return all(math.isfinite(float(number)) for number in numbers)


def _bounds(bounds, shape):
    values = np.broadcast_to(np.asarray(bounds), shape).ravel()
    numbers = [
        str(value) if isinstance(value, float) and not math.isfinite(value) else value for value in values.tolist()
    ]
    return numbers[0] if numbers and all(number == numbers[0] for number in numbers) else numbers
