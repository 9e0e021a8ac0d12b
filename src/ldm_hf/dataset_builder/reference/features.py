"""The first layers of a policy, where Stable-Baselines3's own cannot read the observations."""

from typing import Any

import torch
from gymnasium.spaces import Dict
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import nn

_SMALLEST_NATURE = 36  # side of the smallest image that three layers of NatureCNN leave something of
_SMALLEST_CONVOLVED = 4
_PICTURE_FEATURES = 256


def needs_small_images(space: Any) -> bool:
    """Whether a space holds an image that is too small for the networks of Stable-Baselines3."""
    parts = space.spaces.values() if isinstance(space, Dict) else [space]
    return any(is_image_space(part) and _side(part) < _SMALLEST_NATURE for part in parts)


class SmallImageExtractor(BaseFeaturesExtractor):
    """Features of images of any size, alone or beside vectors.

    Small images go through three layers of 2 x 2 convolutions, after MiniGrid's documentation of training with
    Stable-Baselines3; larger ones through ``NatureCNN``; everything else is flattened.
    """

    def __init__(self, observation_space: Any) -> None:
        """Build the layers for an image space or a ``Dict``, channels first."""
        self._nested = isinstance(observation_space, Dict)
        spaces = observation_space.spaces if self._nested else {"": observation_space}
        parts = {key: self._part(space) for key, space in spaces.items()}
        super().__init__(observation_space, features_dim=sum(size for _, size in parts.values()))
        self._keys = list(parts)
        self.parts = nn.ModuleList(module for module, _ in parts.values())

    def forward(self, observations: Any) -> torch.Tensor:
        """Features of shape (B, features_dim)."""
        values = [observations[key] for key in self._keys] if self._nested else [observations]
        return torch.cat([part(value) for part, value in zip(self.parts, values, strict=True)], 1)

    @staticmethod
    def _part(space: Any) -> tuple[nn.Module, int]:
        if not is_image_space(space):
            return nn.Flatten(), get_flattened_obs_dim(space)
        if _side(space) >= _SMALLEST_NATURE:
            return NatureCNN(space, _PICTURE_FEATURES), _PICTURE_FEATURES
        if _side(space) < _SMALLEST_CONVOLVED:
            return nn.Flatten(), get_flattened_obs_dim(space)
        channels, height, width = space.shape if _channels_first(space) else (space.shape[2], *space.shape[:2])
        layers: list[nn.Module] = []
        for planes in (16, 32, 64):
            layers += [nn.Conv2d(channels, planes, 2), nn.ReLU()]
            channels, height, width = planes, height - 1, width - 1
        linear = nn.Linear(channels * height * width, _PICTURE_FEATURES)
        return nn.Sequential(*layers, nn.Flatten(), linear, nn.ReLU()), _PICTURE_FEATURES


def _channels_first(space: Any) -> bool:
    return int(space.shape[0]) == min(space.shape)


def _side(space: Any) -> int:
    return int(min(space.shape[1:] if _channels_first(space) else space.shape[:2]))
