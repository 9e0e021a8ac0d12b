"""Values of no fixed size, which cross in messages: as what their space holds, whichever side they arrive at.

Python 3.7 with only numpy must run this file.
"""

import sys

import numpy as np


def decode(space, value):
    """A value of a space given as JSON, from the lists, numbers and arrays that a message holds.

    Raises:
        ValueError, TypeError, KeyError, IndexError: the message holds no such value.
    """
    kind = space["type"]
    if kind == "Text":
        return str(value)
    if kind == "Dict":
        return {key: decode(part, value[key]) for key, part in sorted(space["spaces"].items())}
    if kind == "Tuple":
        return tuple(decode(part, value[index]) for index, part in enumerate(space["spaces"]))
    if kind == "Sequence":
        return (
            _stacked(space["space"], value) if space["stack"] else tuple(decode(space["space"], one) for one in value)
        )
    if kind == "Graph":
        nodes, edges, links = value
        edges = None if edges is None else _stacked(space["edge_space"], edges)
        return _graph_class()(_stacked(space["node_space"], nodes), edges, None if links is None else np.asarray(links))
    if kind == "OneOf":
        return np.int64(value[0]), decode(space["spaces"][value[0]], value[1])
    if kind == "Discrete":
        return np.int64(value)
    return np.asarray(value, np.int8 if kind == "MultiBinary" else space["dtype"])


def _stacked(space, value):
    """Several values of a space in one: arrays with an axis more, dictionaries and tuples of those."""
    if space["type"] == "Dict":
        return {key: _stacked(part, value[key]) for key, part in sorted(space["spaces"].items())}
    if space["type"] == "Tuple":
        return tuple(_stacked(part, value[index]) for index, part in enumerate(space["spaces"]))
    if space["type"] in ("Box", "MultiDiscrete", "MultiBinary", "Discrete"):
        return np.asarray(value, {"Discrete": np.int64, "MultiBinary": np.int8}.get(space["type"], space.get("dtype")))
    return tuple(decode(space, one) for one in value)


def _graph_class():
    return (sys.modules.get("gymnasium.spaces") or sys.modules["gym.spaces"]).GraphInstance
