"""Candidates: an algorithm of Stable-Baselines3 or SB3-Contrib with a configuration."""

import importlib
import json
from dataclasses import dataclass, field
from typing import Any

from ldm_hf.errors import ConfigError

_MODULES = {
    **dict.fromkeys(("A2C", "DDPG", "DQN", "PPO", "SAC", "TD3"), "stable_baselines3"),
    **dict.fromkeys(("ARS", "QRDQN", "TQC", "TRPO"), "sb3_contrib"),
}

_ACTION_SPACES = {
    **dict.fromkeys(("A2C", "PPO", "TRPO"), ("Box", "Discrete", "MultiDiscrete", "MultiBinary")),
    **dict.fromkeys(("DQN", "QRDQN"), ("Discrete",)),
    **dict.fromkeys(("DDPG", "SAC", "TD3", "TQC"), ("Box",)),
    "ARS": ("Box", "Discrete"),
}
"""Kinds of actions that each algorithm takes, after the table in the documentation of Stable-Baselines3."""


@dataclass(frozen=True)
class Candidate:
    """What is needed to train a policy, but for the environment, the budget and the seed.

    Attributes:
        algorithm: class name: A2C, ARS, DDPG, DQN, PPO, QRDQN, SAC, TD3, TQC or TRPO.
        hyperparameters: arguments of that class that differ from its defaults, as JSON data.
        num_envs: environments that are stepped together.
        normalize: whether observations and rewards are normalised by running statistics while training. The recorded
            data are never normalised; the reference policy carries the statistics.
    """

    algorithm: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    num_envs: int = 1
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.algorithm not in _MODULES:
            raise ConfigError(f"no algorithm is called {self.algorithm!r}; there are {', '.join(sorted(_MODULES))}")

    def takes(self, action_space: dict[str, Any]) -> bool:
        """Whether the algorithm can act in an action space, given as JSON.

        Stable-Baselines3 takes bounded boxes, counts discrete actions from 0, and arranges them in one row.
        """
        kind = action_space["type"]
        if kind not in _ACTION_SPACES[self.algorithm]:
            return False
        if kind == "Box":
            return "inf" not in json.dumps([action_space["low"], action_space["high"]])
        if kind == "MultiBinary":
            return isinstance(action_space["n"], int)
        starts = action_space["start"] if kind == "MultiDiscrete" else [action_space["start"]]
        return all(start == 0 for start in starts)


def algorithm_class(name: str) -> Any:
    """The class of an algorithm, imported on demand."""
    return getattr(importlib.import_module(_MODULES[name]), name)
