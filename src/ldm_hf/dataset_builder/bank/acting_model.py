"""A model that acts in the environments of a policy, which says at each step what it would have done."""

from typing import Any

import gymnasium
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from ldm_hf.env_registry.spec import EnvironmentSpec
from ldm_hf.hub.pretrained import load_pretrained
from ldm_hf.modeling import LDMPolicy


class ActingModel:
    """A model in B copies of one environment, by the most likely bins, with each copy's history from the first step on."""

    def __init__(self, model: str, described: EnvironmentSpec, envs: gymnasium.vector.VectorEnv) -> None:
        """Load a model.

        Args:
            model: its folder or Hub name.
            described: the environment.
            envs: its copies, which reset in the step that ends an episode.

        Raises:
            CheckpointError: there is no such model.
            UnsupportedSpaceError: the environment does not fit it.
        """
        self._envs = envs
        self._policy = LDMPolicy(*load_pretrained(model), [described] * envs.num_envs)

    def act(self, observations: Any, *outcome: Any) -> Any:
        """A batch of the action space, for a batch of observations.

        Args:
            observations: of all copies; of those whose episode has ended, of the next one.
            outcome: rewards, terminated and truncated, of shape (B,) each, after the first step.

        Raises:
            InvalidValueError: an observation cannot be read.
        """
        rows = list(iterate(self._envs.observation_space, observations))
        actions = self._policy.act(rows, *outcome)
        space = self._envs.single_action_space
        return concatenate(space, actions, create_empty_array(space, len(actions)))  # type: ignore[arg-type]
