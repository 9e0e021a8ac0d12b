"""Candidates: algorithms of Stable-Baselines3 and SB3-Contrib with configurations; ``pool.toml`` lists them."""

import difflib
import functools
import importlib
import json
import math
import sys
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from ldm_hf.dataset_builder.reference.flat_observations import flat_space_json
from ldm_hf.env_registry.worker.space_tree import is_byte_image, leaves
from ldm_hf.errors import ConfigError, UnsupportedSpaceError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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

OFF_POLICY = ("DDPG", "DQN", "QRDQN", "SAC", "TD3", "TQC")
"""Algorithms that keep a replay buffer."""

_LEARNING_STARTS = 100
_BUFFER_SIZE = 1_000_000
_ROLLOUTS = {"A2C": 5, "ARS": 0, "PPO": 2048, "TRPO": 2048}
"""Defaults of Stable-Baselines3 and SB3-Contrib."""

_LEAST_REPLAY = 1000
_REPLAY_BYTES = 2**32
"""The most that a replay buffer may take: one of images is shortened to this, whatever its candidate says."""

_LARGEST_ONE_HOT = 4096  # Stable-Baselines3 gives a discrete observation one input for each of its values.


@dataclass(frozen=True)
class Candidate:
    """What is needed to train a policy, but for the environment, the budget and the seed.

    Attributes:
        algorithm: class name: A2C, ARS, DDPG, DQN, PPO, QRDQN, SAC, TD3, TQC or TRPO.
        hyperparameters: arguments of that class that differ from its defaults, as JSON data. ``"linear_X"`` is a schedule
            from X to 0, ``action_noise`` the standard deviation of Gaussian noise.
        num_envs: environments that are stepped together.
        normalize: whether observations and rewards are normalised by running statistics while training. The recorded
            data are never normalised; the reference policy carries the statistics.
        policy: name of the policy; by default the one for the kind of observations.
        observations: ``"any"``, or ``"images"`` for a configuration that was made for them.
        name: of the candidate in tables and paths; by default the algorithm's.
        source: where the configuration comes from.
    """

    algorithm: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    num_envs: int = 1
    normalize: bool = False
    policy: str | None = None
    observations: str = "any"
    name: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if self.algorithm not in _MODULES:
            raise ConfigError(f"no algorithm is called {self.algorithm!r}; there are {', '.join(sorted(_MODULES))}")
        if not self.name:
            object.__setattr__(self, "name", self.algorithm)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that differs from the algorithm's defaults, for the record."""
        policy = {} if self.policy is None else {"policy": self.policy}
        return {**self.hyperparameters, **policy, "num_envs": self.num_envs, "normalize": self.normalize}

    @property
    def first_update(self) -> int:
        """Transitions after which it learns for the first time; 0 of ARS, which waits for whole episodes."""
        if self.algorithm in OFF_POLICY:
            return int(self.hyperparameters.get("learning_starts", _LEARNING_STARTS))
        return int(self.hyperparameters.get("n_steps", _ROLLOUTS[self.algorithm])) * self.num_envs

    def replay(self, observation_space: dict[str, Any], timesteps: int) -> tuple[int, int]:
        """Transitions that the replay buffer of a run holds, and the bytes of one; 0 where there is none.

        What is longer than the run is never filled.
        """
        if self.algorithm not in OFF_POLICY:
            return 0, 0
        stored = 2 * observation_bytes(observation_space) + 64
        wanted = min(self.hyperparameters.get("buffer_size", _BUFFER_SIZE), max(timesteps, _LEAST_REPLAY))
        return max(_LEAST_REPLAY, min(wanted, _REPLAY_BYTES // stored)), stored

    def incompatibility(self, observation_space: dict[str, Any], action_space: dict[str, Any]) -> str | None:
        """Why the candidate cannot be trained on spaces, given as JSON; None if it can.

        Stable-Baselines3 takes bounded boxes, counts discrete actions from 0, and arranges them in one row.
        """
        return self._incompatible_actions(action_space) or self._incompatible_observations(observation_space)

    def _incompatible_actions(self, space: dict[str, Any]) -> str | None:
        kind = space["type"]
        if kind not in _ACTION_SPACES[self.algorithm]:
            return f"{self.algorithm} does not act in {kind} spaces"
        if kind != "Box" and self.hyperparameters.get("use_sde"):
            return f"state-dependent exploration is for Box actions, not {kind}"
        if kind == "Box" and "inf" in json.dumps([space["low"], space["high"]]):
            return "its actions have no bounds"
        if kind == "Box" and not space["dtype"].startswith("float"):
            return f"its actions are {space['dtype']}: policies act in real numbers"
        if kind == "MultiBinary" and not isinstance(space["n"], int):
            return "its actions have more than one axis"
        if kind == "MultiDiscrete" and any(isinstance(n, list) for n in space["nvec"]):
            return "its actions have more than one axis"
        starts = {"MultiDiscrete": space.get("start", []), "Discrete": [space.get("start", 0)]}.get(kind, [])
        return None if all(start == 0 for start in starts) else "its actions do not start at 0"

    def _incompatible_observations(self, space: dict[str, Any]) -> str | None:
        try:
            flat = flat_space_json(space)
        except UnsupportedSpaceError as error:
            return str(error)
        parts = list(flat["spaces"].values()) if flat["type"] == "Dict" else [flat]
        if any(part["type"] == "Discrete" and part["n"] > _LARGEST_ONE_HOT for part in parts):
            return f"an observation has more than {_LARGEST_ONE_HOT} discrete values"
        if self.observations == "images" and not any(is_byte_image(part) for part in parts):
            return "it is made for images"
        if self.algorithm == "ARS" and (flat["type"] == "Dict" or is_byte_image(flat)):
            return "ARS reads one vector"
        if self.algorithm == "ARS" and flat["type"] != "Box" and self.policy == "LinearPolicy":
            return "a linear policy reads a Box"
        return None


def observation_bytes(space: dict[str, Any]) -> int:
    """Size of one observation of a space, given as JSON, in the arrays of Stable-Baselines3."""
    return sum(_part_bytes(part) for _, part in leaves(space))


def _part_bytes(space: dict[str, Any]) -> int:
    if space["type"] == "Box":
        width = {"uint8": 1, "int8": 1, "bool": 1, "float64": 8, "int64": 8}.get(space["dtype"], 4)
        return width * math.prod(space["shape"])
    return 8 * {"MultiDiscrete": len(space.get("nvec", [])), "MultiBinary": 16}.get(space["type"], 1)


def algorithm_class(name: str) -> Any:
    """The class of an algorithm, imported on demand."""
    return getattr(importlib.import_module(_MODULES[name]), name)


@functools.cache
def pool() -> dict[str, Candidate]:
    """The candidates of ``pool.toml`` by name."""
    text = resources.files("ldm_hf.dataset_builder.reference").joinpath("pool.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    return {name: Candidate(name.partition("-")[0], name=name, **table) for name, table in tables.items()}


def choose_pool(names: tuple[str, ...] | None) -> dict[str, Candidate]:
    """The candidates of these names, or of these algorithms; by default all. ``ConfigError`` if there is none of a name."""
    if not names:
        return dict(pool())
    unknown = [name for name in names if name not in pool()]
    if unknown:
        near = difflib.get_close_matches(unknown[0], pool(), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(pool())}"
        raise ConfigError(f"no candidate is called {', '.join(unknown)}; {hint}")
    return {name: pool()[name] for name in names}
