"""A reference policy in rollouts: a player, as ``ldm_hf.evaluation.players`` has them."""

from collections.abc import Sequence
from typing import Any

import gymnasium
from gymnasium.vector.utils import concatenate, create_empty_array

from ldm_hf.dataset_builder.reference.flat_observations import FlatObservations
from ldm_hf.dataset_builder.reference.policy import ReferencePolicy


class ReferencePlayer:
    """A policy of Stable-Baselines3, acting deterministically, in environments of one kind."""

    def __init__(self, policy: ReferencePolicy) -> None:
        self._policy = policy

    def start(self, envs: Sequence[gymnasium.Env]) -> "ReferencePlayer":
        """Begin in environments of one kind, which were reset."""
        self._space, self._actions = envs[0].observation_space, envs[0].action_space
        self._flat = FlatObservations(self._space)
        return self

    def check(self, env: gymnasium.Env, observation: Any) -> None:
        """Nothing: it was trained in this environment."""

    def act(self, observations: Sequence[Any], *outcomes: Any) -> list[Any]:
        """One action per environment."""
        number = len(observations)
        batch = concatenate(self._space, observations, create_empty_array(self._space, number))  # type: ignore[arg-type]
        return list(self._policy.act(self._flat.flatten(batch)).astype(self._actions.dtype))

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these rows only."""
