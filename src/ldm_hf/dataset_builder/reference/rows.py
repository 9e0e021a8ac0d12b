"""A recording as the rows of a dataset: raw values as slots, with labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldm_hf.dataset_builder.format.schema import CHUNK_LENGTH
from ldm_hf.dataset_builder.format.writer import ChunkRange, Terminals
from ldm_hf.dataset_builder.reference.joined_recording import JoinedRecording
from ldm_hf.dataset_builder.reference.recording import Recording
from ldm_hf.modeling.spaces_ldm import SlotLayout, Transitions


@dataclass(frozen=True)
class RecordedRows:
    """What is written of a recording.

    Attributes:
        recording: the steps of B streams.
        observation, action: how its values are laid out.
        label: the reference actions for a batch of raw observations; None where the actions that were taken are the labels.
        batch: observations that are labelled at once.
    """

    recording: Recording | JoinedRecording
    observation: SlotLayout
    action: SlotLayout
    label: Callable[[Any], Any] | None = None
    batch: int = CHUNK_LENGTH

    def transitions(self, chunk: ChunkRange) -> Transitions:
        """The transitions of a chunk, with their reference actions."""
        recording, rows = self.recording, slice(chunk.start, chunk.stop)
        slots, images, labels = [], [], []
        for start in range(chunk.start, chunk.stop, self.batch):
            seen = recording.observation_batch(chunk.stream, start, min(start + self.batch, chunk.stop))
            observed, image = self.observation.flatten(seen, batched=True)
            slots.append(observed)
            images += [] if image is None else [image]
            labels += [] if self.label is None else [self.action.flatten(self.label(seen), batched=True)[0]]
        taken = recording.action_batch(chunk.stream, chunk.start, chunk.stop)
        actions = self.action.flatten(taken, batched=True)[0]
        return Transitions(
            np.concatenate(slots),
            np.concatenate(images) if images else None,
            actions,
            recording.rewards[rows, chunk.stream],
            recording.terminated[rows, chunk.stream],
            recording.truncated[rows, chunk.stream],
            np.concatenate(labels) if labels else actions,
        )

    def terminals(self) -> Iterator[Terminals]:
        """The observations that ended episodes, a few thousand at a time."""
        places = np.array(self.recording.terminals, np.int64).reshape(-1, 2)
        for start in range(0, len(places), CHUNK_LENGTH):
            part = places[start : start + CHUNK_LENGTH]
            seen = self.recording.terminal_batch(start, start + len(part))
            yield Terminals(part[:, 0], part[:, 1], *self.observation.flatten(seen, batched=True))
