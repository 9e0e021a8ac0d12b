"""Experts: functions that choose actions beside environments, in isolation; what they answer is checked here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldm_hf.env_registry.worker.fitting import IncompatibleValueError, fit
from ldm_hf.env_registry.worker.space_tree import array_format, leaves
from ldm_hf.errors import EnvironmentFailure


@dataclass(frozen=True)
class Expert:
    """A function that an environment's worker asks for actions; ``worker/experts.py`` says how it is called.

    Attributes:
        function: ``module:function``.
        source: text of the module, which is executed in the worker and nowhere else; None of one that is installed there.
    """

    function: str
    source: str | None = None


def checked_actions(environment: str, space: dict[str, Any], rows: Sequence[Any]) -> list[np.ndarray]:
    """The leaves of a batch of actions of a space, given as JSON, from the leaves of an action each; boxes are clipped.

    Raises:
        EnvironmentFailure: they are none.
    """
    parts = leaves(space)
    if not rows or any(not isinstance(row, list) or len(row) != len(parts) for row in rows):
        raise EnvironmentFailure(f"{environment}: its expert did not give an action of {len(parts)} parts")
    return [_batch(environment, leaf, [row[index] for row in rows]) for index, (_, leaf) in enumerate(parts)]


def _batch(environment: str, leaf: dict[str, Any], values: list[Any]) -> np.ndarray:
    found = array_format(leaf)
    assert found is not None  # no model acts in what has no fixed size, and who adopts has asked
    shape, dtype = found
    try:
        with np.errstate(invalid="ignore"):  # what does not fit is refused
            arrays = [fit(value, dtype, "the expert's action") for value in values]
        batch = np.stack([array.reshape(shape) for array in arrays])
    except (IncompatibleValueError, ValueError) as error:
        raise EnvironmentFailure(f"{environment}: {error}") from None
    low, high = bounds(leaf)
    if not np.isfinite(batch).all():
        raise EnvironmentFailure(f"{environment}: the expert's action is not finite: {batch.ravel()[:8].tolist()}")
    if leaf["type"] == "Box":
        return np.clip(batch, low, high)
    if ((batch < low) | (batch > high)).any():
        wrong = batch[((batch < low) | (batch > high))].ravel()[0]
        raise EnvironmentFailure(f"{environment}: the expert's action {wrong} is outside the action space")
    return batch


def bounds(leaf: dict[str, Any]) -> tuple[Any, Any]:
    """Lowest and highest values of a leaf of an action space, which broadcast to its shape."""
    if leaf["type"] == "Box":
        shape, dtype = leaf["shape"], np.dtype(leaf["dtype"])
        low, high = (np.array(leaf[key], np.float64) for key in ("low", "high"))
        return tuple((one.reshape(shape) if one.ndim else one).astype(dtype) for one in (low, high))  # type: ignore[return-value]
    if leaf["type"] == "Discrete":
        return leaf["start"], leaf["start"] + leaf["n"] - 1
    if leaf["type"] == "MultiDiscrete":
        return np.array(leaf["start"]), np.array(leaf["start"]) + np.array(leaf["nvec"]) - 1
    return 0, 1
