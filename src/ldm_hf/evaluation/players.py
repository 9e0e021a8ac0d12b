"""What can be rolled out: a model, and whatever else acts in a batch of environments."""

from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium

from ldm_hf.modeling import LDMModel, LDMPolicy, LDMProcessor


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

    def start(self, envs: Sequence[gymnasium.Env]) -> Policy:
        return LDMPolicy(self._model, self._processor, envs, **self._options)

    def check(self, env: gymnasium.Env, observation: Any) -> None:
        self._processor.action_layout(env.action_space)
        self._processor.observation_layout(env.observation_space).flatten(observation)
