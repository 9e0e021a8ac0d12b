"""An environment's own signal of success, which libraries of robots give in ``info``."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

AT_END = "is_success"
"""Counts at the last step of an episode, as Gymnasium-Robotics, panda-gym and Stable-Baselines3 have it."""

AT_ANY_STEP = "success"
"""Counts at any step of an episode, as Meta-World has it."""


class EpisodeSuccess:
    """What an episode has said of its success so far."""

    def __init__(self) -> None:
        self._signalled = self._succeeded = False

    def see(self, info: Mapping[str, Any]) -> None:
        """Take note of a step."""
        if (at_end := _number(info.get(AT_END))) is not None:
            self._signalled, self._succeeded = True, at_end > 0.5
        elif (now := _number(info.get(AT_ANY_STEP))) is not None:
            self._signalled, self._succeeded = True, self._succeeded or now > 0.5

    @property
    def result(self) -> bool | None:
        """Whether the episode succeeded; None where the environment does not say."""
        return self._succeeded if self._signalled else None


def step_info(infos: Mapping[str, Any], index: int, ended: bool) -> dict[str, Any]:
    """The signals of one environment among the infos of a step of a vector environment, made with ``SameStep``.

    Args:
        infos: of all environments.
        index: of the one that is asked for.
        ended: whether its episode ended with this step, so that what is at the top belongs to the next one.
    """
    source = infos.get("final_info", {}) if ended else infos
    found = {}
    for name in (AT_END, AT_ANY_STEP):
        if name in source and (f"_{name}" not in source or source[f"_{name}"][index]):
            found[name] = source[name][index]
    return found


def _number(value: Any) -> float | None:
    """A signal as a number; None of what is none, such as a text."""
    try:
        number = float(np.asarray(value, float).reshape(()))
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number  # numpy makes NaN of what is not there
