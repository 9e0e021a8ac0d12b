"""Requests, checked: what a client asks for, or one line that says what is wrong."""

import json
import math
from typing import Any

import numpy as np

from ldm_hf.errors import InvalidRequestError, InvalidValueError, one_line
from ldm_hf.serving.engine import Spaces
from ldm_hf.serving.wire import field

_MAX_SPACE_BYTES = 64 << 10
"""Of a space's description; layouts of spaces are kept, so that their size matters."""

_LARGEST_SEED = 2**63 - 1
_ENDS = ("terminated", "truncated")
_OPTIONS = ("context_length", "temperature", "exploration_temperature", "seed")


def opening(message: dict[str, Any], max_environments: int) -> tuple[list[Spaces], dict[str, Any]]:
    """The environments and the options of a session that is to be opened.

    Raises:
        InvalidRequestError: a field is missing, or none of those that there are.
        InvalidValueError: a number is out of its range.
    """
    if unknown := set(message) - {"environments", *_OPTIONS}:
        raise InvalidRequestError(f"unknown fields {sorted(map(str, unknown))[:5]}; there are {list(_OPTIONS)}")
    environments: list[Spaces] = []
    for entry in field(message, "environments", list):
        if not isinstance(entry, dict):
            raise InvalidRequestError(f"an environment must be a map, got {type(entry).__name__}")
        count = field(entry, "num_envs", int, default=1)
        if not 1 <= count <= max_environments - len(environments):
            raise InvalidValueError(f"num_envs must be from 1 to {max_environments} in all, got {count}")
        environments += [Spaces(_space(entry, "observation_space"), _space(entry, "action_space"))] * count
    if not environments:
        raise InvalidValueError("a session has at least one environment")
    return environments, _options(message)


def transition(message: dict[str, Any], num_envs: int, step: int) -> tuple[Any, ...]:
    """What was seen of all environments: observations and, but at step 0, rewards and ends, of shape (num_envs,).

    Raises:
        InvalidRequestError: a field is missing, or of another type.
        InvalidValueError: a field is not of this shape, or a reward is not a finite number.
    """
    observations = field(message, "observations", list, np.ndarray)
    found = observations.shape[:1] if isinstance(observations, np.ndarray) else (len(observations),)
    if found != (num_envs,):
        raise InvalidValueError(f"the session has {num_envs} environments, got {found[0] if found else 0} observations")
    if step == 0:
        if any(message.get(name) is not None for name in ("rewards", *_ENDS)):
            raise InvalidRequestError("at step 0 nothing has come of an action yet: leave rewards and ends out")
        return (observations,)
    rewards = _column(message, "rewards", num_envs).astype(np.float64)
    if not np.isfinite(rewards).all():
        row = int((~np.isfinite(rewards)).argmax())
        raise InvalidValueError(f"the reward of environment {row} is {rewards[row]}: it must be a finite number")
    return observations, rewards, *(_column(message, name, num_envs).astype(bool) for name in _ENDS)


def selection(message: dict[str, Any], num_envs: int) -> list[int]:
    """The rows of a session that are to be kept.

    Raises:
        InvalidRequestError: there are none in the message.
        InvalidValueError: a row is not there, or chosen twice.
    """
    rows = field(message, "rows", list)
    if not rows or not all(type(row) is int and 0 <= row < num_envs for row in rows) or len(set(rows)) < len(rows):
        raise InvalidValueError(f"rows must be different numbers from 0 to {num_envs - 1}, got {str(rows)[:60]}")
    return rows


def _space(entry: dict[str, Any], name: str) -> dict[str, Any]:
    space = field(entry, name, dict)
    try:
        size = len(json.dumps(space))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{name} is not plain data: {one_line(error, 200)}") from error
    if size > _MAX_SPACE_BYTES:
        raise InvalidValueError(f"{name} takes {size} bytes as JSON; {_MAX_SPACE_BYTES} is the limit")
    return space


def _options(message: dict[str, Any]) -> dict[str, Any]:
    options = {
        "context_length": field(message, "context_length", int, type(None), default=None),
        "temperature": field(message, "temperature", float, int, default=0.0),
        "exploration_temperature": field(message, "exploration_temperature", float, int, type(None), default=None),
        "seed": field(message, "seed", int, default=0),
    }
    for name in ("temperature", "exploration_temperature"):
        if options[name] is not None and not math.isfinite(options[name]):
            raise InvalidValueError(f"{name} must be a finite number, got {options[name]}")
    if not 0 <= options["seed"] <= _LARGEST_SEED:
        raise InvalidValueError(f"seed must be from 0 to {_LARGEST_SEED}, got {options['seed']}")
    return options


def _column(message: dict[str, Any], name: str, num_envs: int) -> np.ndarray:
    """A number for each environment."""
    given = field(message, name, list, np.ndarray)
    try:
        column = np.asarray(given)
    except ValueError:
        column = np.empty(0, object)
    if column.shape != (num_envs,) or column.dtype.kind not in "biuf":
        raise InvalidValueError(f"{name} must be {num_envs} numbers, got {str(given)[:60]}")
    return column
