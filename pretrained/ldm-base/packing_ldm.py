"""What is known of a batch on the host: which rows are computed together, and how short ones share rows of the backbone.

Without it a device would have to be waited for. Shapes: B rows, R some of them, T transitions, S observation slots, A
action slots, N transitions that are not padding, P packed rows of L places.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .spaces_ldm import ABSENT

WORTH_PACKING = 0.1
"""Share of padding from which a batch is packed: block masks take time too, and cost the fastest causal attention."""

RowsByWidth = list[tuple[int, torch.Tensor]]
"""Numbers of slots, each with the rows of a batch that have that many, int64 of shape (R,)."""


class SlotRows(NamedTuple):
    """The rows of a batch whose action slot ``slot`` is of a kind, int64 of shape (R,)."""

    slot: int
    kind: int
    rows: torch.Tensor


class RowGroups(NamedTuple):
    """Which rows of a batch are computed together. All but ``rows`` is the host's, so that no device is waited for.

    Attributes:
        rows: those of all groups, one group after the other, int64 of shape (N,).
        observations, actions: numbers of slots, each with the number of rows that have that many.
        slots: action slots and kinds, each with the number of rows where the slot is of that kind.
    """

    rows: torch.Tensor
    observations: tuple[tuple[int, int], ...]
    actions: tuple[tuple[int, int], ...]
    slots: tuple[tuple[int, int, int], ...]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "RowGroups":
        """The same with the rows on a device."""
        return self._replace(rows=self.rows.to(device, non_blocking=non_blocking))

    def split(self) -> tuple[RowsByWidth, RowsByWidth, list[SlotRows]]:
        """The groups by observation slots, by action slots, and by each action slot's kind."""
        sizes = [group[-1] for groups in self[1:] for group in groups]
        parts = iter(self.rows.split(sizes))
        observations, actions = (
            [(width, next(parts)) for width, _ in each] for each in (self.observations, self.actions)
        )
        return observations, actions, [SlotRows(slot, kind, next(parts)) for slot, kind, _ in self.slots]


def group_rows(observation_kinds: torch.Tensor, action_kinds: torch.Tensor) -> RowGroups:
    """Group the rows of a batch by what they have; where kinds (B, S) and (B, A) are a device's, it is waited for."""
    parts, groups = [], []
    for kinds_BS in (observation_kinds.cpu(), action_kinds.cpu()):
        widths_B = (kinds_BS != ABSENT).sum(1)
        found = [(width, (widths_B == width).nonzero().squeeze(1)) for width in widths_B.unique().tolist()]
        groups.append(tuple((width, len(rows)) for width, rows in found))
        parts += [rows for _, rows in found]
    slots = []
    for slot, kinds_B in enumerate(action_kinds.cpu().unbind(1)):
        for kind in kinds_B[kinds_B != ABSENT].unique().tolist():
            parts.append((kinds_B == kind).nonzero().squeeze(1))
            slots.append((slot, kind, len(parts[-1])))
    return RowGroups(torch.cat(parts).to(action_kinds.device), groups[0], groups[1], tuple(slots))


class Packing(NamedTuple):
    """Which transitions of a padded batch share the rows of the backbone, and which of them the loss is made of.

    Sequences in one row do not see each other: their positions begin again, by which the backbone knows them apart. All
    but the tensors is the host's.

    Attributes:
        transitions: those of the batch, flattened to (B x T), that are not padding, int64 of shape (N,).
        rows: the row of each in the batch, int64 of shape (N,).
        places: where each is among the packed rows, flattened to (P x L), int64 of shape (N,).
        position_ids: int64 of shape (P, L); what is left over at the end of a row is a sequence of its own.
        slots: ``group_rows`` of the batch by action slots only, of transitions instead of rows: numbers below N.
    """

    transitions: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor
    position_ids: torch.Tensor
    slots: RowGroups

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Packing":
        """The same with its tensors on a device."""
        moved = {name: part.to(device, non_blocking=non_blocking) for name, part in self._asdict().items()}
        return Packing(**moved)

    def pack(self, tokens_BTH: torch.Tensor) -> torch.Tensor:
        """Tokens in packed rows, (P, L, H); zero where there are none."""
        packed = tokens_BTH.new_zeros(self.position_ids.numel(), tokens_BTH.shape[-1])
        packed = packed.index_copy(0, self.places, tokens_BTH.flatten(0, 1)[self.transitions])
        return packed.unflatten(0, tuple(self.position_ids.shape))

    def unpack(self, hidden_PLH: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """Hidden states of a batch of shape (B, T), (B, T, H); zero where there is padding."""
        hidden = hidden_PLH.new_zeros(shape[0] * shape[1], hidden_PLH.shape[-1])
        hidden = hidden.index_copy(0, self.transitions, hidden_PLH.flatten(0, 1)[self.places])
        return hidden.unflatten(0, shape)

    def single_transitions(
        self, hidden_BTH: torch.Tensor, labels_BTA: torch.Tensor, kinds_BA: torch.Tensor, bounds_BA2: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the loss reads, without padding: a batch of N rows of one transition each."""
        hidden_N1H, labels_N1A = (
            values.flatten(0, 1)[self.transitions].unsqueeze(1) for values in (hidden_BTH, labels_BTA)
        )
        return hidden_N1H, labels_N1A, kinds_BA[self.rows], bounds_BA2[self.rows]


def pack_rows(lengths: Sequence[int], groups: RowGroups) -> Packing | None:
    """Put sequences of these lengths into as few rows as long as the longest as is easily had; None if it is not worth it.

    Args:
        lengths: transitions of each row of a batch; the longest has T.
        groups: ``group_rows`` of the batch.
    """
    longest = max(lengths)
    if sum(lengths) > (1 - WORTH_PACKING) * longest * len(lengths):
        return None
    starts, taken = [0] * len(lengths), list[int]()
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):  # first fit, the longest first
        place = next((place for place, used in enumerate(taken) if used + lengths[row] <= longest), len(taken))
        taken += [0] * (place == len(taken))
        starts[row] = place * longest + taken[place]
        taken[place] += lengths[row]
    if len(taken) > (1 - WORTH_PACKING) * len(lengths):
        return None
    length_B, start_B = torch.tensor(lengths), torch.tensor(starts)
    first_B = length_B.cumsum(0) - length_B
    rows_N = torch.repeat_interleave(torch.arange(len(lengths)), length_B)
    steps_N = torch.arange(len(rows_N)) - first_B[rows_N]
    places_N = start_B[rows_N] + steps_N
    position_ids = torch.arange(longest) - torch.tensor(taken).unsqueeze(1)  # of what is left over, from its 0 on
    position_ids.view(-1)[places_N] = steps_N
    numbers = [torch.arange(first, first + length) for first, length in zip(first_B, length_B, strict=True)]
    return Packing(rows_N * longest + steps_N, rows_N, places_N, position_ids, _of_transitions(groups, numbers))


def _of_transitions(groups: RowGroups, numbers: Sequence[torch.Tensor]) -> RowGroups:
    """The groups by action slots, of the numbers of each row's transitions instead of rows."""
    *_, slots = groups.split()
    parts = [torch.cat([numbers[row] for row in group.rows]) for group in slots]
    sizes = tuple((group.slot, group.kind, len(part)) for group, part in zip(slots, parts, strict=True))
    return RowGroups(torch.cat(parts), (), (), sizes)
