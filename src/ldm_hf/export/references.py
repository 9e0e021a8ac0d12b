"""Reference policies as ONNX: the ghosts beside the model on its page."""

import math
from pathlib import Path
from typing import Any

import torch
from gymnasium.spaces import Box

from ldm_hf.dataset_builder.reference.flat_observations import flat_space_json
from ldm_hf.dataset_builder.reference.policy import PLAIN, ReferencePolicy
from ldm_hf.export.onnx import Graph, write_graph
from ldm_hf.modeling.spaces_ldm import walk_space


class ReferenceStep(Graph):
    """Numbers of one observation, its parts one after another in slot order, to the numbers of an action.

    Args:
        policy: the reference.
        space: of the environment's observations, as JSON, which the policy may read in another form.
    """

    inputs, outputs = ("observation",), ("action",)

    def __init__(self, policy: ReferencePolicy, space: dict[str, Any]) -> None:
        super().__init__()
        self._network = policy.network
        statistics, self._clip, self._epsilon = policy.normalization
        self._statistics = {
            key: tuple(torch.from_numpy(part).float() for part in both) for key, both in statistics.items()
        }
        parts = [part for _, part in walk_space(space) if part["type"] != "Text"]
        read = policy.spaces[0]
        keys = list(flat_space_json(space)["spaces"]) if read["type"] == "Dict" else [PLAIN]
        own = [read["spaces"][key] for key in keys] if read["type"] == "Dict" else [read]
        self._parts = [(key, _shape(part), _shape(flat)) for key, part, flat in zip(keys, parts, own, strict=True)]

    @property
    def size(self) -> int:
        """How many numbers an observation has."""
        return sum(math.prod(shape) for _, shape, _ in self._parts)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        split = observation.split([math.prod(shape) for _, shape, _ in self._parts])
        read = {
            key: self._read(key, numbers, shape, flat)
            for (key, shape, flat), numbers in zip(self._parts, split, strict=True)
        }
        action = self._network._predict(read.get(PLAIN, read), deterministic=True)
        space = self._network.action_space
        if isinstance(space, Box):
            low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
            if self._network.squash_output:
                action = low + 0.5 * (action + 1.0) * (high - low)
            action = torch.minimum(torch.maximum(action, low), high)
        return action.float().flatten()

    def _read(self, key: str, numbers: torch.Tensor, shape: list[int], flat: list[int]) -> torch.Tensor:
        values = numbers.reshape(shape)
        if len(flat) == 3 and flat != shape:
            values = values.permute(2, 0, 1)  # Stable-Baselines3 has channels first
        if key in self._statistics:
            mean, variance = self._statistics[key]
            values = ((values - mean) / torch.sqrt(variance + self._epsilon)).clamp(-self._clip, self._clip)
        return values.reshape(flat)[None] if flat else values.reshape(1).long()


def _shape(space: dict[str, Any]) -> list[int]:
    return list(space.get("shape", [] if space["type"] == "Discrete" else [len(space.get("nvec", [0]))]))


def export_reference(policy: ReferencePolicy, space: dict[str, Any], path: Path) -> None:
    """Write a reference policy as a graph of one observation; ``space`` is that of the environment, as JSON."""
    step = ReferenceStep(policy, space)
    validates = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)  # which would ask what the numbers are
    try:
        write_graph(step, (torch.zeros(step.size),), ({},), path)
    finally:
        torch.distributions.Distribution.set_default_validate_args(validates)
