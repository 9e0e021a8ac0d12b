"""Policies that are there and learn no more, of every kind: what acts in rollouts, kept in a folder with ``policy.json``."""

import copy
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from ldm_hf.dataset_builder.anchors.playing import Act
from ldm_hf.dataset_builder.reference.flat_observations import FlatObservations, flat_space_json
from ldm_hf.dataset_builder.reference.policy import FORMAT, ReferencePolicy
from ldm_hf.env_registry.experts import Expert, bounds
from ldm_hf.env_registry.registry import make_vec
from ldm_hf.env_registry.remote.vector_env import RemoteVectorEnv
from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.env_registry.worker.space_tree import array_format, leaves
from ldm_hf.errors import CheckpointError, ConfigError
from ldm_hf.modeling.spaces_ldm import space_from_json

SCRIPTED = "scripted"
_SOURCE = "expert.py"


class Policy(ABC):
    """What acts, deterministically, in copies of one environment.

    Attributes:
        description: of it, for records: ``algorithm``, ``hyperparameters``, ``source``.
    """

    description: dict[str, Any]

    def environments(self, environment: str, number: int) -> VectorEnv:
        """The environments that it can act in, which reset in the step that ends an episode."""
        return make_vec(environment, number, autoreset_mode="SameStep", restart=True)

    @property
    def isolated(self) -> bool:
        """Whether its environments are in isolation, also where their library can be imported here."""
        return False

    def __call__(self, envs: VectorEnv, seed: int) -> Act:
        """Begin to act, as ``play`` asks it to; nothing of it is random."""
        return lambda observations: self.act(envs, observations)

    @abstractmethod
    def act(self, envs: VectorEnv, observations: Any) -> Any:
        """Its actions in all environments, of which these are the observations: a batch of the action space."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what ``load_policy`` reads."""


class NetworkPolicy(Policy):
    """A reference policy in an environment with the spaces that it was trained in."""

    def __init__(self, reference: ReferencePolicy, described: EnvironmentSpec, description: dict[str, Any]) -> None:
        """Take a reference policy.

        Raises:
            ConfigError: it was trained in other spaces.
        """
        self.reference, self.description = reference, description
        flat = FlatObservations(space_from_json(described.observation_space))
        require_same_space(
            described.id, "observation", flat_space_json(described.observation_space), reference.spaces[0]
        )
        require_same_space(described.id, "action", described.action_space, reference.spaces[1])
        self._flatten = flat.flatten
        (_, leaf), *_ = leaves(described.action_space)
        self._dtype = array_format(leaf)[1]  # algorithms act in arrays only

    def act(self, envs: VectorEnv, observations: Any) -> np.ndarray:
        """Its actions; it reads nothing but the observations."""
        return self.reference.act(self._flatten(observations)).astype(self._dtype)

    def rounded(self, weights: dict[str, Any]) -> "NetworkPolicy":
        """The same with other values of the weights that act."""
        other = copy.copy(self)
        other.reference = self.reference.with_weights(weights)
        return other

    def save(self, folder: Path) -> None:
        """Write the reference policy's files, without weights that do not act."""
        self.reference.save(folder, self.reference.acting_weights())


class ScriptedPolicy(Policy):
    """A function that acts beside the environment, in isolation."""

    def __init__(self, expert: Expert) -> None:
        """Take a function; it is not called before there are environments."""
        self.expert = expert
        source = "the library's own" if expert.source is None else "a function of its user"
        self.description = {
            "algorithm": expert.function,
            "hyperparameters": {},
            "source": f"a scripted expert, {source}",
        }

    @property
    def isolated(self) -> bool:
        """It is somebody's code."""
        return True

    def environments(self, environment: str, number: int) -> VectorEnv:
        """The environments, with the function beside each of them."""
        return make_vec(environment, number, autoreset_mode="SameStep", restart=True, expert=self.expert)

    def act(self, envs: VectorEnv, observations: Any) -> Any:
        """What the function says; it may look at more than the observations, and at what was done before."""
        inner = envs.unwrapped
        assert isinstance(inner, RemoteVectorEnv)
        return inner.expert_actions()

    def save(self, folder: Path) -> None:
        """Write ``policy.json`` and the function's source, if it is not installed."""
        folder.mkdir(parents=True, exist_ok=True)
        record = {"format": FORMAT, "kind": SCRIPTED, "function": self.expert.function}
        if self.expert.source is not None:
            (folder / _SOURCE).write_text(self.expert.source, encoding="utf-8")
        (folder / "policy.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def drawn(leaf: dict[str, Any], number: int, generator: np.random.Generator) -> np.ndarray:
    """Random values of a leaf of an action space, ``number`` of them."""
    shape, dtype = array_format(leaf)
    low, high = bounds(leaf)
    if dtype.kind in "iub" or leaf["type"] != "Box":
        return generator.integers(low, high, (number, *shape), endpoint=True).astype(dtype)
    low, high = np.broadcast_to(low, shape), np.broadcast_to(high, shape)
    bounded = np.isfinite(low) & np.isfinite(high)
    even = generator.uniform(np.where(bounded, low, 0), np.where(bounded, high, 1), (number, *shape))
    values = np.where(bounded, even, generator.standard_normal((number, *shape)))
    return np.clip(values.astype(dtype), low, high)


def load_policy(folder: Path, described: EnvironmentSpec) -> Policy:
    """Read a policy of any kind from its folder; nothing is unpickled, and no source is executed here.

    Raises:
        CheckpointError: the files are missing, damaged or of another format.
        ConfigError: it acts in other spaces than the environment has.
    """
    try:
        record = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
        if record.get("kind") == SCRIPTED:
            if record.get("format") != FORMAT:
                raise CheckpointError(f"{folder} has another policy format than {FORMAT}")
            source = folder / _SOURCE
            text = source.read_text(encoding="utf-8") if source.is_file() else None
            return ScriptedPolicy(Expert(str(record["function"]), text))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder} holds no readable policy: {' '.join(str(error).split())}") from error
    reference = ReferencePolicy.load(folder)
    description = {"algorithm": reference.algorithm, "hyperparameters": {}, "source": "a policy of ldm_hf"}
    return NetworkPolicy(reference, described, description)


def require_same_space(environment: str, name: str, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse a policy whose observation or action space is not that of the environment.

    Of observations, kinds and shapes are compared, up to the order of the axes of images: those that a network reads may be
    normalised. Of actions, bounds are compared too.

    Raises:
        ConfigError: it is another one.
    """
    compared = _shapes if name == "observation" else _values
    if compared(wanted) != compared(found):
        raise ConfigError(
            f"the policy's {name} space is {_brief(found)}, that of {environment} is {_brief(wanted)}: it is a policy of "
            "another environment, or it acted behind a wrapper that changes the space"
        )


def _shapes(space: dict[str, Any]) -> Any:
    if space["type"] == "Dict":
        return {key: _shapes(part) for key, part in space["spaces"].items()}
    if space["type"] != "Box":
        return _values(space)
    return "Box", sorted(space["shape"]) if len(space["shape"]) == 3 else list(space["shape"])


def _values(space: dict[str, Any]) -> Any:
    if space["type"] != "Box":
        return {key: value for key, value in space.items() if key not in ("dtype", "start") or value}
    limits = (np.broadcast_to(np.float32(space[key]), np.prod(space["shape"], dtype=int)) for key in ("low", "high"))
    return "Box", list(space["shape"]), *(limit.tolist() for limit in limits)


def _brief(space: dict[str, Any]) -> str:
    if space["type"] == "Dict":
        return f"Dict({', '.join(f'{key}: {_brief(part)}' for key, part in space['spaces'].items())})"
    if space["type"] == "Box":
        return f"Box({' x '.join(map(str, space['shape']))}, {_range(space)})"
    return f"{space['type']}({space.get('n', space.get('nvec'))})"


def _range(space: dict[str, Any]) -> str:
    low, high = (np.array(space[key], np.float64) for key in ("low", "high"))
    return f"{low.min():.4g} to {high.max():.4g}" if low.size else "empty"
