"""The transition tokenizer: trajectories and spaces to the tensors of ``LDMModel``, and its bins back to actions.

Shapes: B rows of a batch, T transitions of a row, S observation slots, A action slots; S and A are those of the widest
environment of the batch.

**Alignment.** Token t holds the observation at t and the action, reward and done signal of t-1. The first token of a
sequence has none: its done signal is ``START`` and its action and reward contribute nothing. The label at t is the
reference action for the observation at t. ``LDMProcessor.align`` is the one place where this shift happens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from .configuration_ldm import LDMConfig
from .quantization_ldm import MU_LAW, ActionCode
from .spaces_ldm import (
    CONTINUOUS,
    DISCRETE,
    IMAGE_SIZE,
    MAX_ACTION_SLOTS,
    MAX_OBSERVATION_SLOTS,
    NUM_BINS,
    InvalidValueError,
    SlotLayout,
    Transitions,
)

NOT_DONE, TERMINATED, TRUNCATED, START = 0, 1, 2, 3
"""Done signals; ``START`` marks the first token of a sequence, which has no transition before it."""

IGNORED = float("nan")
"""Label of a slot or a transition that the loss leaves out."""


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """T transition tokens of one environment, aligned: what the model reads, before padding to a batch.

    Attributes:
        observations: float32 of shape (T, S).
        images: uint8 of shape (T, image_size, image_size, 3), or None.
        previous_actions: float32 of shape (T, A); the first row is not read where ``previous_dones`` is ``START``.
        previous_rewards: float32 of shape (T,).
        previous_dones: int64 of shape (T,): ``NOT_DONE``, ``TERMINATED``, ``TRUNCATED`` or ``START``.
        reference_actions: float32 of shape (T, A), or None.
    """

    observation_layout: SlotLayout
    action_layout: SlotLayout
    observations: np.ndarray
    images: np.ndarray | None
    previous_actions: np.ndarray
    previous_rewards: np.ndarray
    previous_dones: np.ndarray
    reference_actions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.previous_rewards)


class LDMProcessor(ProcessorMixin):
    """Turns observations, actions and rewards of any supported environment into model inputs, and bins into actions.

    Args:
        num_bins: bins of a continuous value and symbols of a discrete one (paper section 4.3: 1024).
        mu, max_value: mu and M of the mu-law (paper section 4.3: 100 and 256).
        max_observation_slots, max_action_slots: limits of a space (paper section 4.3: 128 and 28).
        image_size: side in pixels to which images are brought (paper section 4.3: 64).
        action_quantization: how continuous actions are cut into bins, see ``LDMConfig``.

    Examples:
        >>> spaces = env.observation_space, env.action_space
        >>> inputs = processor(observations, actions, rewards, terminated, truncated, *spaces)
        >>> model(**inputs).logits.shape  # (1, T, A, num_bins)
    """

    attributes: list[str] = []

    def __init__(
        self,
        num_bins: int = NUM_BINS,
        mu: float = 100.0,
        max_value: float = 256.0,
        max_observation_slots: int = MAX_OBSERVATION_SLOTS,
        max_action_slots: int = MAX_ACTION_SLOTS,
        image_size: int = IMAGE_SIZE,
        action_quantization: str = MU_LAW,
    ):
        self.num_bins = num_bins
        self.mu = mu
        self.max_value = max_value
        self.max_observation_slots = max_observation_slots
        self.max_action_slots = max_action_slots
        self.image_size = image_size
        self.action_quantization = action_quantization
        super().__init__()

    @classmethod
    def for_config(cls, config: LDMConfig) -> "LDMProcessor":
        """The processor of models with this configuration."""
        return cls(
            config.num_bins,
            config.mu,
            config.max_value,
            config.max_observation_slots,
            config.max_action_slots,
            config.image_size,
            config.action_quantization,
        )

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that ``collate`` makes for the model."""
        return [
            "observations",
            "observation_kinds",
            "images",
            "image_rows",
            "previous_actions",
            "action_kinds",
            "previous_rewards",
            "previous_dones",
            "action_bounds",
            "labels",
        ]

    def observation_layout(self, space: Any) -> SlotLayout:
        """The slots of an observation space, Gymnasium or JSON; raises ``UnsupportedSpaceError`` if it does not fit."""
        return SlotLayout.of(
            space,
            role="observation",
            max_slots=self.max_observation_slots,
            num_bins=self.num_bins,
            image_size=self.image_size,
        )

    def action_layout(self, space: Any) -> SlotLayout:
        """The slots of an action space, Gymnasium or JSON; raises ``UnsupportedSpaceError`` if it does not fit."""
        return SlotLayout.of(space, role="action", max_slots=self.max_action_slots, num_bins=self.num_bins)

    def decode_action(self, layout: SlotLayout, bins: np.ndarray) -> tuple[Any, np.ndarray]:
        """The action that chosen bins of shape (A,) stand for, and its slots, float32 of shape (A,)."""
        described = self._describe_actions(layout)
        slots = ActionCode.of(self).decode(torch.from_numpy(np.array(bins)[: layout.num_slots]), *described).numpy()
        # Once more in the bounds' own precision: rounded to float32 they may lie outside themselves.
        slots = np.where(layout.kinds == CONTINUOUS, np.clip(slots, layout.low, layout.high), slots).astype(np.float32)
        return layout.unflatten(slots), slots

    def describe_rows(
        self, observation_layouts: Sequence[SlotLayout], action_layouts: Sequence[SlotLayout]
    ) -> dict[str, torch.Tensor]:
        """What the model must know of each row's spaces: the kinds of its slots and the bounds of its actions."""
        rows = len(observation_layouts)
        num_observations = max((layout.num_slots for layout in observation_layouts), default=0)
        num_actions = max((layout.num_slots for layout in action_layouts), default=0)
        observation_kinds = torch.zeros(rows, num_observations, dtype=torch.int64)
        action_kinds = torch.zeros(rows, num_actions, dtype=torch.int64)
        action_bounds = torch.zeros(rows, num_actions, 2)
        for row, (observed, acted) in enumerate(zip(observation_layouts, action_layouts, strict=True)):
            observation_kinds[row, : observed.num_slots] = torch.from_numpy(observed.kinds)
            kinds, bounds = self._describe_actions(acted)
            action_kinds[row, : acted.num_slots] = kinds
            action_bounds[row, : acted.num_slots] = bounds
        return {"observation_kinds": observation_kinds, "action_kinds": action_kinds, "action_bounds": action_bounds}

    def _describe_actions(self, layout: SlotLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """Kinds (A,) and bounds (A, 2) of action slots: the symbols of a discrete slot are from 0 to n - 1."""
        continuous = layout.kinds == CONTINUOUS
        low = np.where(continuous, layout.low, 0)
        high = np.where(continuous, layout.high, layout.cardinality - 1)
        with np.errstate(over="ignore"):  # what float32 cannot hold is as good as infinite
            bounds = np.stack([low, high], -1).astype(np.float32)
        return torch.from_numpy(layout.kinds.astype(np.int64)), torch.from_numpy(bounds)

    def align(
        self, transitions: Transitions, observation_layout: SlotLayout, action_layout: SlotLayout
    ) -> TokenSequence:
        """Shift actions, rewards and done signals by one: token t carries those of t-1, the first token ``START``."""
        done = np.where(transitions.terminated, TERMINATED, np.where(transitions.truncated, TRUNCATED, NOT_DONE))
        return TokenSequence(
            observation_layout,
            action_layout,
            transitions.observations,
            transitions.images,
            previous_actions=_shift(transitions.actions, 0),
            previous_rewards=_shift(transitions.rewards, 0),
            previous_dones=_shift(done.astype(np.int64), START),
            reference_actions=transitions.reference_actions,
        )

    def collate(self, sequences: Sequence[TokenSequence]) -> BatchFeature:
        """Stack sequences of any environments and lengths; shorter and narrower ones are padded at the end.

        Padding changes nothing for the others: padded slots are ``ABSENT``, padded transitions come after all real ones
        (attention is causal) and their labels are ``IGNORED``.
        """
        described = self.describe_rows(
            [sequence.observation_layout for sequence in sequences], [sequence.action_layout for sequence in sequences]
        )
        shape = (len(sequences), max(map(len, sequences)))
        num_observations, num_actions = (described[name].shape[1] for name in ("observation_kinds", "action_kinds"))
        batch: dict[str, np.ndarray] = {
            "observations": np.zeros((*shape, num_observations), np.float32),
            "previous_actions": np.zeros((*shape, num_actions), np.float32),
            "previous_rewards": np.zeros(shape, np.float32),
            "previous_dones": np.full(shape, START, np.int64),
        }
        if any(sequence.reference_actions is not None for sequence in sequences):
            batch["labels"] = np.full((*shape, num_actions), IGNORED, np.float32)
        for row, sequence in enumerate(sequences):
            steps = len(sequence)
            observed, acted = sequence.observation_layout.num_slots, sequence.action_layout.num_slots
            batch["observations"][row, :steps, :observed] = sequence.observations
            batch["previous_actions"][row, :steps, :acted] = sequence.previous_actions
            batch["previous_rewards"][row, :steps] = sequence.previous_rewards
            batch["previous_dones"][row, :steps] = sequence.previous_dones
            if sequence.reference_actions is not None:
                batch["labels"][row, :steps, :acted] = _checked_labels(sequence)
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        return BatchFeature({**tensors, **described, **self._images(sequences, shape[1])})

    def __call__(
        self,
        observations: Any,
        actions: Any,
        rewards: Any,
        terminated: Any,
        truncated: Any,
        observation_space: Any,
        action_space: Any,
        reference_actions: Any = None,
    ) -> BatchFeature:
        """Model inputs (and labels, given reference actions) of one trajectory of T transitions, as a batch of one.

        Args:
            observations, actions, reference_actions: values of the spaces, every array with a leading axis of length T.
            rewards, terminated, truncated: what each action brought, length T.
            observation_space, action_space: Gymnasium spaces, or their JSON.
        """
        observation_layout = self.observation_layout(observation_space)
        action_layout = self.action_layout(action_space)
        slots, images = observation_layout.flatten(observations, batched=True)
        transitions = Transitions(
            slots,
            images,
            action_layout.flatten(actions, batched=True)[0],
            np.asarray(rewards, np.float32),
            np.asarray(terminated, bool),
            np.asarray(truncated, bool),
            None if reference_actions is None else action_layout.flatten(reference_actions, batched=True)[0],
        )
        return self.collate([self.align(transitions, observation_layout, action_layout)])

    def _images(self, sequences: Sequence[TokenSequence], length: int) -> dict[str, torch.Tensor]:
        """Images of those rows that have some, channels first, and which rows these are."""
        rows = [row for row, sequence in enumerate(sequences) if sequence.images is not None]
        if not rows:
            return {}
        images = _empty_images(len(rows), length, self.image_size)
        for image, row in zip(images.numpy(), rows, strict=True):
            image[: len(sequences[row])] = sequences[row].images
            image[len(sequences[row]) :] = 0
        return {"images": images.permute(0, 1, 4, 2, 3), "image_rows": torch.tensor(rows)}


def _empty_images(rows: int, length: int, size: int) -> torch.Tensor:
    """Memory for images, uint8 of shape (rows, length, size, size, 3).

    A loader process takes it where the others can read it, as torch's own collation does: images would be copied there, and
    they are most of a batch.
    """
    shape = (rows, length, size, size, 3)
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)


def _shift(array: np.ndarray, first: int) -> np.ndarray:
    shifted = np.empty_like(array)
    shifted[0] = first
    shifted[1:] = array[:-1]
    return shifted


def _checked_labels(sequence: TokenSequence) -> np.ndarray:
    """The reference actions, (T, A): numbers, and symbols that their slots have."""
    layout, values = sequence.action_layout, sequence.reference_actions
    assert values is not None
    outside = np.isnan(values) | ((layout.kinds == DISCRETE) & ((values < 0) | (values >= layout.cardinality)))
    if outside.any():
        step, slot = map(int, np.argwhere(outside)[0])
        limit = "not a number" if np.isnan(values[step, slot]) else f"out of {layout.cardinality[slot]}"
        raise InvalidValueError(f"reference action {values[step, slot]:g} at transition {step}, slot {slot} is {limit}")
    return values
