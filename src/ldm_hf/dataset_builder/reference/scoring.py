"""Scoring a reference policy: episodes in which it acts deterministically."""

import contextlib
from typing import TYPE_CHECKING

from ldm_hf.dataset_builder.anchors.playing import Act, Episodes, play
from ldm_hf.dataset_builder.reference.flat_observations import FlatObservations
from ldm_hf.env_registry.registry import make_vec

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from ldm_hf.dataset_builder.reference.policy import ReferencePolicy

DETERMINISTIC_EPISODES = 10
_NUM_ENVS = 5


def deterministic_episodes(
    policy: "ReferencePolicy", environment: str, seed: int, number: int = DETERMINISTIC_EPISODES
) -> Episodes:
    """Episodes of a policy, a multiple of 5 of them, none favoured for being short.

    Raises:
        EnvironmentFailure: the environment broke, or gave a reward that is not finite.
    """
    envs = make_vec(environment, _NUM_ENVS, autoreset_mode="SameStep", restart=True)
    with contextlib.closing(envs):
        return play(envs, lambda given, _: _acting(policy, given), number, seed)


def _acting(policy: "ReferencePolicy", envs: "VectorEnv") -> Act:
    flat, space = FlatObservations(envs.single_observation_space), envs.single_action_space
    # Policies of Stable-Baselines3 answer in real numbers where actions are bits.
    return lambda observations: policy.act(flat.flatten(observations)).astype(space.dtype)
