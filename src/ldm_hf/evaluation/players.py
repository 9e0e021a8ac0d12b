"""What can be rolled out: a model, a random policy, and whatever else acts in a batch of environments."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import gymnasium

from ldm_hf.modeling import LDMModel, LDMPolicy, LDMProcessor
from ldm_hf.modeling.joint_ldm import JointStep
from ldm_hf.modeling.steps_ldm import packed


class Policy(Protocol):
    """Acts in a batch of environments, as ``LDMPolicy`` does."""

    def act(self, observations: Sequence[Any], *outcomes: Any) -> list[Any]:
        """One action per environment."""

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these rows only."""


class Player(Protocol):
    """Begins rollouts."""

    def start(self, envs: Sequence[gymnasium.Env]) -> Policy:
        """The policy of a batch of environments, which were reset."""

    def check(self, env: gymnasium.Env, observation: Any) -> None:
        """Raise ``UnsupportedSpaceError`` or ``InvalidValueError`` if it cannot act there, or read what is shown."""


class ModelPlayer:
    """A model, acting by masked argmax with the history of its rollout; options are those of ``LDMPolicy``."""

    def __init__(self, model: LDMModel, processor: LDMProcessor, **options: Any):
        self._model, self._processor, self._options = model, processor, options

    @cached_property
    def _acting(self) -> LDMModel:
        """The model, packed once for all policies; a graph cannot hold packed weights."""
        return self._model if self._options.get("compile") else packed(self._model.eval())

    @cached_property
    def _joint(self) -> JointStep:
        return JointStep(self._acting)

    def start(self, envs: Sequence[gymnasium.Env]) -> LDMPolicy:
        return LDMPolicy(self._acting, self._processor, envs, **self._options)

    def choose(self, policies: Sequence[LDMPolicy]) -> list[list[Any]]:
        """Actions of several policies that it started, after ``observe`` of each, in one forward pass."""
        return self._joint(policies)

    def check(self, env: gymnasium.Env, observation: Any) -> None:
        self._processor.action_layout(env.action_space)
        self._processor.observation_layout(env.observation_space).flatten(observation)


class RandomPlayer:
    """Actions drawn from the action space, from a seed."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def start(self, envs: Sequence[gymnasium.Env]) -> "RandomPlayer":
        self._spaces = [env.action_space for env in envs]
        for row, space in enumerate(self._spaces):
            space.seed(self._seed + row)
        return self

    def check(self, env: gymnasium.Env, observation: Any) -> None:
        """Nothing: it looks at nothing."""

    def act(self, observations: Sequence[Any], *outcomes: Any) -> list[Any]:
        """One action per environment."""
        return [space.sample() for space in self._spaces]

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these rows only."""
        self._spaces = [self._spaces[row] for row in rows]
