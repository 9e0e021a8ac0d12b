"""What clients and server send each other: a msgpack map in the body of an HTTP request or answer, and JSON for errors.

Arrays are msgpack's extension type 1: a line of text with dtype and lengths (``<f4 3 2``), then the bytes in C order.
Nothing is ever unpickled.
"""

from collections.abc import Mapping
from typing import Any

import msgpack

from ldm_hf import errors
from ldm_hf.env_registry.worker.protocol import decode_array, encode_array
from ldm_hf.errors import InvalidRequestError, InvalidValueError, LDMError, ServingError, one_line

MEDIA_TYPE = "application/msgpack"

STATUS: dict[type[LDMError], int] = {
    errors.InvalidRequestError: 400,
    errors.UnauthorizedError: 401,
    errors.UnknownSessionError: 404,
    errors.SessionConflictError: 409,
    errors.InvalidValueError: 422,
    errors.UnsupportedSpaceError: 422,
    errors.ServerFullError: 503,
    errors.ServingError: 500,
}
"""Errors that a server answers with, and their HTTP status."""

_ERRORS = {error.__name__: error for error in STATUS}
_LONGEST_LINE = 500


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as the body of a request or answer.

    Raises:
        InvalidValueError: it holds what is neither a number, a text, an array of numbers, nor made of these.
    """
    try:
        return msgpack.packb(message, default=encode_array, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidValueError(f"a value cannot be sent: {one_line(error, 200)}") from error


def unpack(body: bytes) -> dict[str, Any]:
    """The message in a body.

    Raises:
        InvalidRequestError: it holds none.
    """
    try:
        message = msgpack.unpackb(body, ext_hook=decode_array, raw=False)
    except Exception as error:  # msgpack raises errors of many types, and NumPy of others
        reason = one_line(error, 200)
        raise InvalidRequestError(f"the body is not msgpack: {type(error).__name__}: {reason}") from error
    if not isinstance(message, dict):
        raise InvalidRequestError(f"the body must be a msgpack map, got {type(message).__name__}")
    return message


def field(message: Mapping[str, Any], name: str, *types: type, default: Any = ...) -> Any:
    """A field of a message.

    Args:
        message: from ``unpack``.
        name: of the field.
        *types: what its value may be; a truth value is not taken for a number.
        default: its value where it is missing; without one, it must be there.

    Raises:
        InvalidRequestError: it is missing or of another type; the message names it.
    """
    value = message.get(name, default)
    if value is ...:
        raise InvalidRequestError(f"the field {name!r} is missing; there are {sorted(map(str, message))[:20]}")
    if name in message and not (isinstance(value, types) and (bool in types or not isinstance(value, bool))):
        wanted = " or ".join("None" if each is type(None) else each.__name__ for each in types)
        raise InvalidRequestError(f"the field {name!r} must be {wanted}, got {type(value).__name__}")
    return value


def error_body(error: LDMError) -> dict[str, Any]:
    """An error as JSON: ``{"error": {"type": ..., "message": ...}}``."""
    return {"error": {"type": type(error).__name__, "message": one_line(error, _LONGEST_LINE)}}


def error_of(body: Any) -> LDMError:
    """The error that a server has answered with."""
    described = body.get("error") if isinstance(body, dict) else None
    if not isinstance(described, dict):
        return ServingError("the server answered with an error that it does not describe: is it one of `ldm serve`?")
    return _ERRORS.get(str(described.get("type")), ServingError)(str(described.get("message")))
