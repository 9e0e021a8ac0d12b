"""Reads what a pickle says without doing it: nothing that it names is imported, called or made.

A pickle is a program for a small stack machine (Python's ``pickletools`` documents it). Here its classes and calls become
inert ``Named`` and ``Made`` values, from which numbers and arrays can be taken.
"""

import pickletools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_MARK = object()
_PLAIN = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "STRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_SINGLE = {"APPEND": 1, "SETITEM": 2}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class Named:
    """A class or function by its name."""

    name: str


@dataclass
class Made:
    """What a call would have made.

    Attributes:
        by: what is called.
        arguments: of the call.
        state: what would be given to the object then; None if nothing is.
    """

    by: Any
    arguments: Any
    state: Any = None
    items: list[Any] = field(default_factory=list)


def read_pickle(data: bytes) -> Any:
    """What a pickle holds, as plain values, ``Named`` and ``Made``.

    Raises:
        ValueError: it is not a pickle, or one that does more than pickles of data do.
    """
    try:
        return _Machine().run(data)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not a pickle of data: {' '.join(str(error).split())}") from error


class _Machine:
    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name == "STOP":
                return self._stack.pop()
            if name in _PLAIN:
                self._stack.append(_PLAIN[name])
            elif name in _EMPTY:
                self._stack.append(_EMPTY[name]())
            elif name in _VALUES:
                self._stack.append(argument)
            elif name in _TUPLES:
                self._stack.append(self._pop(_TUPLES[name]))
            else:
                self._other(name, argument)
        raise ValueError("it has no end")

    def _other(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in ("PROTO", "FRAME"):
            return
        if name == "MARK":
            stack.append(_MARK)
        elif name == "POP":
            stack.pop()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[int(argument)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[int(argument)])
        elif name == "GLOBAL":
            stack.append(Named(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            stack.append(Named(".".join(map(str, self._pop(2)))))
        elif name in ("REDUCE", "NEWOBJ"):
            stack.append(Made(*self._pop(2)))
        elif name == "NEWOBJ_EX":
            by, arguments, _ = self._pop(3)
            stack.append(Made(by, arguments))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        else:
            self._collect(name)

    def _collect(self, name: str) -> None:
        """Opcodes that put values into lists, tuples and dictionaries."""
        stack = self._stack
        values = self._pop(_SINGLE[name]) if name in _SINGLE else self._since_mark()
        if name == "TUPLE":
            stack.append(values)
        elif name in ("LIST", "FROZENSET"):
            stack.append(list(values))
        elif name == "DICT":
            stack.append(dict(zip(values[::2], values[1::2], strict=True)))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            (stack[-1].items if isinstance(stack[-1], Made) else stack[-1]).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            pairs = list(zip(values[::2], values[1::2], strict=True))
            if isinstance(stack[-1], Made):
                stack[-1].items.extend(pairs)
            else:
                stack[-1].update(pairs)
        else:
            raise ValueError(f"it holds {name}")

    def _pop(self, number: int) -> tuple[Any, ...]:
        if len(self._stack) < number:
            raise ValueError("its stack is empty")
        found = tuple(self._stack[-number:])
        del self._stack[-number:]
        return found

    def _since_mark(self) -> tuple[Any, ...]:
        place = max(index for index, value in enumerate(self._stack) if value is _MARK)
        found = tuple(self._stack[place + 1 :])
        del self._stack[place:]
        return found


def array(value: Any) -> np.ndarray:
    """The array of real numbers that a pickled numpy array, numpy number or plain number says.

    Raises:
        ValueError: it says none.
    """
    if isinstance(value, bool | int | float):
        return np.asarray(value, np.float64)
    name = value.by.name.rpartition(".")[2] if isinstance(value, Made) and isinstance(value.by, Named) else ""
    try:
        if name == "_reconstruct":  # numpy's: version, shape, dtype, whether in Fortran's order, bytes
            _, shape, dtype, fortran, data = value.state
            return _shaped(data, dtype, shape, "F" if fortran else "C")
        if name == "_frombuffer":  # protocol 5
            data, dtype, shape, order = value.arguments
            return _shaped(data, dtype, shape, order)
        if name == "scalar":
            dtype, data = value.arguments
            return _shaped(data, dtype, (), "C")
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"an array in it is damaged: {error}") from error
    raise ValueError(f"{str(value)[:60]!r} is not an array of numbers")


def _shaped(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    code = str(dtype.arguments[0])
    byte_order = dtype.state[1] if isinstance(dtype.state, tuple) else "="
    found = np.dtype((byte_order if byte_order in "<>" else "") + code)
    if found.kind not in "fiub":
        raise ValueError(f"its dtype is {code}")
    # Old protocols hold bytes as a call of `_codecs.encode` with a text.
    raw = data.arguments[0].encode("latin1") if isinstance(data, Made) else data
    return np.frombuffer(raw, found).reshape(shape, order=order).astype(np.float64)  # type: ignore[call-overload]
