"""Spaces of three kinds, and random sequences of them."""

import numpy as np
from gymnasium import spaces

from ldm_hf.modeling.processing_ldm import TokenSequence


class Spaces:
    """What a policy needs of an environment."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space = observation_space
        self.action_space = action_space


CONTROL = Spaces(spaces.Box(-1, 1, (3,)), spaces.Box(-2, 2, (2,)))
GRID = Spaces(spaces.Discrete(48), spaces.Discrete(4))
CAMERA = Spaces(
    spaces.Dict({"camera": spaces.Box(0, 255, (64, 64, 3), np.uint8), "speed": spaces.Box(-1, 1, (1,))}),
    spaces.MultiDiscrete([3, 2]),
)


def tokens(processor, environment: Spaces, length: int, seed: int) -> TokenSequence:
    """A random aligned sequence of an environment, with labels."""
    environment.observation_space.seed(seed)
    environment.action_space.seed(seed)
    generator = np.random.default_rng(seed)
    observation = processor.observation_layout(environment.observation_space)
    action = processor.action_layout(environment.action_space)
    observed = [observation.flatten(environment.observation_space.sample()) for _ in range(length)]
    acted = [action.flatten(environment.action_space.sample())[0] for _ in range(length)]
    dones = generator.integers(0, 3, length)
    dones[0] = 3
    return TokenSequence(
        observation,
        action,
        np.stack([slots for slots, _ in observed]),
        None if observation.image is None else np.stack([image for _, image in observed]),
        np.stack(acted),
        generator.normal(size=length).astype(np.float32),
        dones,
        np.stack(acted[::-1]),
    )


def without_labels(batch):
    return {name: tensor for name, tensor in batch.items() if name != "labels"}
