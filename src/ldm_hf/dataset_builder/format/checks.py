"""What recorded values must be: finite, and within their spaces. Vectorised, for readers and writers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ldm_hf.errors import DatasetFormatError
from ldm_hf.modeling.spaces_ldm import DISCRETE, SlotLayout, Transitions

_TOLERANCE = 1e-5  # of a bound, relative above 1: slots are float32, bounds and environments often float64


@dataclass(frozen=True)
class Defect:
    """A value that cannot be right.

    Attributes:
        row: the first one that has it, counted from 0.
        reason: which column, what was found there and what is allowed.
    """

    row: int
    reason: str


class ValueChecks:
    """What the columns of an environment's transitions may hold.

    Observations outside the bounds that an environment declares are not defects: many environments leave them, and data say
    what happened. Actions and labels outside their space are: nobody can take them.

    Args:
        observation, action: the spaces as slots.
    """

    def __init__(self, observation: SlotLayout, action: SlotLayout):
        self._observation = _Slots(observation)
        self._action = _Slots(action)

    def defects(self, transitions: Transitions) -> list[Defect]:
        """The first defect of each column of T transitions, by row."""
        found = [
            self.observation_defect(transitions.observations),
            self._action.defect("action", transitions.actions, bounded=True),
            _first(~np.isfinite(transitions.rewards), lambda row: f"the reward is {transitions.rewards[row]}"),
            _first(transitions.terminated & transitions.truncated, lambda row: "it is both terminated and truncated"),
        ]
        if transitions.reference_actions is not None:
            found.append(self._action.defect("reference_action", transitions.reference_actions, bounded=True))
        return sorted((defect for defect in found if defect is not None), key=lambda defect: defect.row)

    def observation_defect(self, observations: np.ndarray) -> Defect | None:
        """The first defect of observed slots of shape (T, S)."""
        return self._observation.defect("observation", observations, bounded=False)

    def outside(self, observations: np.ndarray) -> np.ndarray:
        """Which rows of observed slots of shape (T, S) lie outside the declared space, bool of shape (T,)."""
        return np.asarray(self._observation.outside(observations).any(1))

    def require(self, transitions: Transitions, where: str, first_row: int = 0) -> None:
        """Raise ``DatasetFormatError`` with file, row and reason if there is a defect.

        Args:
            transitions: T of them.
            where: the file that they lie in.
            first_row: of them, in that file.
        """
        for defect in self.defects(transitions)[:1]:
            raise DatasetFormatError(f"{where}, row {first_row + defect.row}: {defect.reason}")


class _Slots:
    def __init__(self, layout: SlotLayout):
        self._discrete = np.flatnonzero(layout.kinds == DISCRETE)
        # What fills a table is what the model can read; a digit of a large number may take the whole of it.
        self._table = layout.num_bins - 1
        margin = _TOLERANCE * np.maximum(1, np.abs(np.stack([layout.low, layout.high])))
        self._low, self._high = layout.low - margin[0], layout.high + margin[1]

    def defect(self, column: str, values: np.ndarray, *, bounded: bool) -> Defect | None:
        """The first row in which a slot is not finite, no symbol, or, if that matters, outside the space."""
        wrong = ~np.isfinite(values)
        symbols = values[:, self._discrete]
        wrong[:, self._discrete] |= (symbols != np.floor(symbols)) | (symbols < 0) | (symbols > self._table)
        if bounded:
            wrong |= self.outside(values)
        return _first(wrong.any(1), lambda row: self._describe(column, values[row], wrong[row]))

    def outside(self, values: np.ndarray) -> np.ndarray:
        """Which slots of shape (T, S) lie outside their bounds."""
        return (values < self._low) | (values > self._high)

    def _describe(self, column: str, row: np.ndarray, wrong: np.ndarray) -> str:
        slot = int(wrong.argmax())
        if slot in self._discrete:
            return f"{column} holds {row[slot]:g} in slot {slot}, which takes 0 to {self._high[slot]:.0f}"
        return f"{column} holds {row[slot]:g} in slot {slot}, which takes {self._low[slot]:g} to {self._high[slot]:g}"


def _first(wrong: np.ndarray, describe: Callable[[int], str]) -> Defect | None:
    if not wrong.any():
        return None
    row = int(wrong.argmax())
    return Defect(row, describe(row))
