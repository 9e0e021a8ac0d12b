"""The typed errors of the package. Each message is one line: what was wrong, what was got, what to do.

``LDMError`` is the base of all. It and the two that a model raises are defined in ``modeling``, which is self-contained.
"""

import contextlib
from collections.abc import Iterator

from ldm_hf.modeling.spaces_ldm import InvalidValueError, LDMError, UnsupportedSpaceError

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DatasetFormatError",
    "EnvironmentFailure",
    "HubError",
    "InvalidRequestError",
    "InvalidValueError",
    "LDMError",
    "MissingDependencyError",
    "ServerFullError",
    "ServingError",
    "SessionConflictError",
    "StorageError",
    "TrainingDivergedError",
    "UnauthorizedError",
    "UnknownEnvironmentError",
    "UnknownSessionError",
    "UnsupportedSpaceError",
    "failures_of",
    "one_line",
]


class MissingDependencyError(LDMError, ImportError):
    """An optional package that a command needs is not installed; the message says what to install."""


class UnknownEnvironmentError(LDMError, KeyError):
    """No environment has this id; the message suggests the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError would print the repr of its message.


class EnvironmentFailure(LDMError, RuntimeError):
    """An environment could not be made or broke while it ran."""


class DatasetFormatError(LDMError, ValueError):
    """A dataset file that is truncated, damaged, foreign or of another version; the message names the path."""


class HubError(LDMError, OSError):
    """The Hub could not be read or written; the message names the repository or file, and what to do."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CheckpointError(LDMError, RuntimeError):
    """A checkpoint or model folder that cannot be read or written; the message names the path."""


class ConfigError(LDMError, ValueError):
    """A setting that cannot be used; the message names the setting, the value and what is allowed."""


class TrainingDivergedError(LDMError, ArithmeticError):
    """A training step after which loss, gradient or weights are not finite; the message names step and sequences."""


class StorageError(LDMError, OSError):
    """A file that cannot be written, for want of space mostly; what was there before is untouched."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ServingError(LDMError, RuntimeError):
    """A server of ``ldm serve`` that cannot be reached, or that fails; base of what such a server answers."""


class InvalidRequestError(ServingError, ValueError):
    """A request that a server cannot read: no msgpack map, a field that is missing or of another type, a body too large."""


class UnauthorizedError(ServingError):
    """A request without the token that the server was started with."""


class UnknownSessionError(ServingError, LookupError):
    """A session that is not open: it was closed, or dropped because no request came in time."""


class ServerFullError(ServingError):
    """A server whose sessions have as many environments as it takes."""


class SessionConflictError(ServingError):
    """A request out of order: of a step that is not the next one, or while another request of the session is answered."""


def one_line(error: BaseException, longest: int | None = None) -> str:
    """What an exception says, in one line of at most ``longest`` characters; its type where it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__)[:longest]


@contextlib.contextmanager
def failures_of(subject: str, verb: str = "failed") -> Iterator[None]:
    """Turn whatever third-party code raises into an ``EnvironmentFailure``: "<subject> <verb>: <type>: <reason>"."""
    try:
        yield
    except LDMError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise EnvironmentFailure(f"{subject} {verb}: {type(error).__name__}: {reason}") from error
