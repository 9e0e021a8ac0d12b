"""Values as arrays of their space's dtype: exact, or refused.

Python 3.7 with only numpy must run this file.
"""

import numpy as np


class IncompatibleValueError(Exception):
    """A value that its dtype cannot hold: storing it would make another value of it."""


def fit(value, dtype, where):
    """An array of a dtype that holds what a value does.

    Floats are rounded where the dtype is narrower. Whole numbers and truth values are held exactly or refused.

    Args:
        value: a number, a list, an array of any framework.
        dtype: of the space that it should belong to.
        where: what it is, for the message.

    Raises:
        IncompatibleValueError: it does not fit: 300 or 0.7 as uint8, 1e300 as float32, a text as any number.
    """
    try:
        given = np.asarray(value)
        if given.dtype == dtype:
            return given
        if given.dtype.kind == "O":
            given = np.array([_number(part) for part in given.ravel()]).reshape(given.shape)
        if given.dtype.kind not in "biuf":
            raise IncompatibleValueError(f"{where} holds {_shown(value)}, which is not a number")
        fitted = given.astype(dtype)
        kept = np.isfinite(fitted) if dtype.kind == "f" else fitted == given
        if not kept.all() and dtype.kind == "f":
            kept |= ~np.isfinite(given)
    except (TypeError, ValueError, OverflowError) as error:
        raise IncompatibleValueError(f"{where} holds {_shown(value)}, which is not a number: {error}") from None
    if not kept.all():
        wrong = given.ravel()[np.flatnonzero(~kept)[0]]
        raise IncompatibleValueError(f"{where} holds {_shown(wrong)}, which {dtype.name} cannot hold")
    return fitted


def _number(value):
    if value is None:  # which numpy would make NaN
        raise TypeError("there is none")
    return value if isinstance(value, (bool, int, float)) else np.asarray(value, np.float64)[()]


def _shown(value):
    return repr(value.item() if isinstance(value, np.generic) else value)[:60]
