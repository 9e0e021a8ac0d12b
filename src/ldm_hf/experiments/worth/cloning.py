"""Behaviour cloning by a multilayer perceptron: what a few episodes are worth without any pretraining, or any context."""

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from ldm_hf.dataset_builder.format.reader import EnvironmentDataset
from ldm_hf.modeling.spaces_ldm import CONTINUOUS, DISCRETE, SlotLayout

_WIDTH, _BATCH, _STEPS, _VALIDATION_STEPS, _PATIENCE = 256, 256, 2000, 50, 10
_LARGEST_ONE_HOT = 64  # symbols; more of them are read as a number


class Cloner(nn.Module):
    """Two hidden layers from an observation to an action, standardised by the data that it learns from.

    Args:
        observation, action: layouts of the spaces.
        sample: what it will learn from, for the statistics: slots float32 of shape (N, S), images or None.
        seed: of the weights and of the order of the data.
    """

    def __init__(self, observation: SlotLayout, action: SlotLayout, sample: tuple[Any, Any], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.observation, self._action = observation, action
        self._symbols = np.flatnonzero((observation.kinds == DISCRETE) & (observation.cardinality <= _LARGEST_ONE_HOT))
        self._numbers = np.setdiff1d(np.arange(observation.num_slots), self._symbols)
        raw = self.features(*sample)
        self._mean, self._std = raw.mean(0), raw.std(0, correction=0).clamp(min=1e-6)
        widths = self._widths = np.where(action.kinds == DISCRETE, action.cardinality, 1).tolist()
        self.layers = nn.Sequential(
            *(nn.Linear(raw.shape[1], _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH), nn.ReLU()),
            nn.Linear(_WIDTH, sum(widths)),
        )

    def forward(self, raw: Tensor) -> list[Tensor]:
        """Scores of symbols, or a number, for each action slot, from what ``features`` gives, of shape (N, F)."""
        inputs = ((raw - self._mean) / self._std).clamp(-5, 5)
        return list(self.layers(inputs).split(self._widths, dim=1))

    def loss(self, raw: Tensor, actions: Tensor) -> Tensor:
        """Mean over action slots of cross-entropies and squared errors, these in units of half their range."""
        total = raw.new_zeros(())
        for slot, found in enumerate(self(raw)):
            wanted = actions[:, slot]
            if self._action.kinds[slot] == CONTINUOUS:
                total = total + ((found[:, 0] - self._scaled(wanted, slot)) ** 2).mean()
            else:
                total = total + nn.functional.cross_entropy(found, wanted.long())
        return total / len(self._widths)

    @torch.no_grad()
    def act(self, slots: np.ndarray, images: np.ndarray | None) -> list[Any]:
        """Actions for N observations."""
        rows = []
        for slot, found in enumerate(self(self.features(slots, images))):
            if self._action.kinds[slot] == CONTINUOUS:
                middle, half = self._range(slot)
                rows.append(found[:, 0] * half + middle)
            else:
                rows.append(found.argmax(1).float())
        return [self._action.unflatten(row) for row in torch.stack(rows, 1).numpy()]

    def features(self, slots: np.ndarray, images: np.ndarray | None) -> Tensor:
        """One row of numbers for each observation: numbers as they are, symbols one-hot, images of 16 x 16."""
        parts = [torch.from_numpy(np.nan_to_num(slots[:, self._numbers], posinf=1e6, neginf=-1e6))]
        for slot in self._symbols:
            symbols = torch.from_numpy(slots[:, slot]).long()
            parts.append(nn.functional.one_hot(symbols, int(self.observation.cardinality[slot])).float())
        if images is not None:
            pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
            parts.append(nn.functional.adaptive_avg_pool2d(pixels, 16).flatten(1))
        return torch.cat(parts, 1)

    def _range(self, slot: int) -> tuple[float, float]:
        low, high = float(self._action.low[slot]), float(self._action.high[slot])
        return ((low + high) / 2, (high - low) / 2) if np.isfinite([low, high]).all() else (0.0, 1.0)

    def _scaled(self, values: Tensor, slot: int) -> Tensor:
        middle, half = self._range(slot)
        return (values - middle) / half


def clone(train: EnvironmentDataset, held_back: EnvironmentDataset | None, seed: int) -> Cloner:
    """A perceptron that imitates the labels of a dataset; of the lowest loss on what is held back, where there is such."""
    observation, action = SlotLayout.of(train.observation_space), SlotLayout.of(train.action_space, role="action")
    slots, images, actions = _read(train)
    cloner = Cloner(observation, action, (slots, images), seed)
    raw, wanted = cloner.features(slots, images), torch.from_numpy(actions)
    check = None
    if held_back is not None:
        other_slots, other_images, other_actions = _read(held_back)
        check = cloner.features(other_slots, other_images), torch.from_numpy(other_actions)
    optimizer = torch.optim.AdamW(cloner.parameters(), lr=1e-3, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(seed)
    best, best_loss, waited = copy.deepcopy(cloner.state_dict()), float("inf"), 0
    for step in range(1, _STEPS + 1):
        rows = torch.randint(len(raw), (min(_BATCH, len(raw)),), generator=generator)
        optimizer.zero_grad()
        cloner.loss(raw[rows], wanted[rows]).backward()
        optimizer.step()
        if check is not None and step % _VALIDATION_STEPS == 0:
            with torch.no_grad():
                loss = float(cloner.loss(*check))
            if loss < best_loss:
                best, best_loss, waited = copy.deepcopy(cloner.state_dict()), loss, 0
            elif (waited := waited + 1) >= _PATIENCE:
                break
    if check is not None:
        cloner.load_state_dict(best)
    return cloner.eval()


class ClonerPlayer:
    """Rolls a perceptron out; it reads nothing but the observation."""

    def __init__(self, cloner: Cloner) -> None:
        self._cloner, self._observation = cloner, cloner.observation

    def start(self, envs: Sequence[gymnasium.Env]) -> "ClonerPlayer":
        """Begin; there is nothing to remember."""
        return self

    def check(self, env: gymnasium.Env, observation: Any) -> None:
        """Raise ``InvalidValueError`` if an observation cannot be read."""
        self._observation.flatten(observation)

    def act(self, observations: Sequence[Any], *outcomes: Any) -> list[Any]:
        """One action per environment."""
        flat = [self._observation.flatten(observation) for observation in observations]
        pixels = [image for _, image in flat if image is not None]
        images = np.stack(pixels) if pixels else None
        return self._cloner.act(np.stack([slots for slots, _ in flat]), images)

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these rows only."""


def _read(dataset: EnvironmentDataset) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Observations, images and labels of the first stream: the others are the same episodes in other orders."""
    chunks = sorted((place, chunk) for chunk, place in enumerate(dataset.places()) if place[0] == 0)
    parts = [dataset.chunk(chunk) for _, chunk in chunks]
    images = [part.images for part in parts if part.images is not None]
    actions = [part.reference_actions for part in parts if part.reference_actions is not None]
    return (
        np.concatenate([part.observations for part in parts]),
        np.concatenate(images) if images else None,
        np.concatenate(actions),
    )
