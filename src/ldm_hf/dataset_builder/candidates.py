"""Candidates: an algorithm of Stable-Baselines3 or SB3-Contrib with a configuration."""

import importlib
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
        """Whether the algorithm can act in an action space, given as JSON."""
        return action_space["type"] in _ACTION_SPACES[self.algorithm]


def algorithm_class(name: str) -> Any:
    """The class of an algorithm, imported on demand."""
    return getattr(importlib.import_module(_MODULES[name]), name)
