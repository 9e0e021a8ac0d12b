"""The training loss: cross-entropy of the reference actions' bins, from hidden states, a piece of the logits at a time.

Shapes: B rows, R rows of one action space kind, T transitions, A action slots, H the hidden size, K the number of bins.
"""

import math
from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from .configuration_ldm import LDMConfig
from .quantization_ldm import ActionCode
from .spaces_ldm import ABSENT, CONTINUOUS

SlotLogits = Callable[[torch.Tensor, int], torch.Tensor]
"""Logits (..., A, K) of the first A slots, of hidden states (..., H): see ``LDMModel.slot_logits``."""

_POSITIONS = 8192
"""Slots of transitions whose logits, 1024 each, are in memory at a time: 32 MB in float32."""


def action_loss(
    slot_logits: SlotLogits,
    hidden_BTH: torch.Tensor,
    labels_BTA: torch.Tensor,
    kinds_BA: torch.Tensor,
    bounds_BA2: torch.Tensor,
    config: LDMConfig,
) -> torch.Tensor:
    """Cross-entropy in nats, averaged over the slots of a transition and summed over transitions.

    All logits of a batch would take more memory than the model: A x 1024 for each transition. They are made for the slots
    that rows have, in pieces, forgotten, and made again for the backward pass.

    Args:
        slot_logits: the action head.
        hidden_BTH: what the backbone says.
        labels_BTA: raw slot values of the reference actions; NaN where there is none.
        kinds_BA, bounds_BA2: of the action slots.
        config: of the model.
    """
    total = hidden_BTH.new_zeros((), dtype=torch.float32)
    for kinds, rows in _rows_by_kinds(kinds_BA.cpu()):
        rows_at_once = max(1, _POSITIONS // (hidden_BTH.shape[1] * len(kinds)))
        for some in rows.split(rows_at_once):
            some_R = some.to(hidden_BTH.device)
            labels_RTA, bounds_RA2 = labels_BTA[some_R, :, : len(kinds)], bounds_BA2[some_R, : len(kinds)]
            arguments = slot_logits, hidden_BTH, some_R, labels_RTA, bounds_RA2, kinds, config
            if torch.is_grad_enabled():
                total = total + checkpoint(_rows_loss, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                total = total + _rows_loss(*arguments)
    return total


def _rows_by_kinds(kinds_BA: torch.Tensor) -> list[tuple[list[int], torch.Tensor]]:
    """The kinds of slots that rows have, without padding, each with its rows."""
    patterns_PA, pattern_B = kinds_BA.unique(dim=0, return_inverse=True)
    groups = [
        ([kind for kind in kinds if kind != ABSENT], (pattern_B == index).nonzero().squeeze(1))
        for index, kinds in enumerate(patterns_PA.tolist())
    ]
    return [(kinds, rows) for kinds, rows in groups if kinds]


def mask_bins(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Logits (..., K) with bins outside ``allowed`` (..., 2), lowest and highest, at the lowest value."""
    bins = torch.arange(logits.shape[-1], device=logits.device)
    outside = (bins < allowed[..., :1]) | (bins > allowed[..., 1:])
    return logits.masked_fill(outside, torch.finfo(logits.dtype).min)


def _rows_loss(
    slot_logits: SlotLogits,
    hidden_BTH: torch.Tensor,
    rows_R: torch.Tensor,
    labels_RTA: torch.Tensor,
    bounds_RA2: torch.Tensor,
    kinds: list[int],
    config: LDMConfig,
) -> torch.Tensor:
    """The loss of rows whose slots are of the same kinds, summed over transitions."""
    logits_RTAK = slot_logits(hidden_BTH[rows_R], len(kinds)).float()
    # Unbound, not indexed: the gradient of an index is as large as all slots.
    slots = zip(logits_RTAK.unbind(2), labels_RTA.unbind(2), kinds, bounds_RA2.unbind(1), strict=True)
    return torch.stack([_slot_loss(*slot, config) for slot in slots]).sum() / len(kinds)


def _slot_loss(
    logits_RTK: torch.Tensor, labels_RT: torch.Tensor, kind: int, bounds_R2: torch.Tensor, config: LDMConfig
) -> torch.Tensor:
    """Cross-entropy of one action slot of one kind, summed over transitions."""
    code = ActionCode.of(config)
    values_RT, bounds_R12 = labels_RT.nan_to_num(), bounds_R2.unsqueeze(1)
    kinds_11 = torch.full((1, 1), kind, device=labels_RT.device)
    allowed_R12 = code.allowed(kinds_11, bounds_R12)
    if config.mask_training_logits:
        logits_RTK = mask_bins(logits_RTK, allowed_R12)
    likelihood_RTK = logits_RTK.log_softmax(-1)
    if kind == CONTINUOUS and config.action_smoothing:
        target_RTK = _histogram(code.position(values_RT, bounds_R12), allowed_R12, config)
        losses_RT = -(target_RTK * likelihood_RTK).sum(-1)
    else:
        bins_RT = code.encode(values_RT, kinds_11, bounds_R12)
        losses_RT = -likelihood_RTK.gather(-1, bins_RT.unsqueeze(-1)).squeeze(-1)
    return losses_RT.masked_fill(labels_RT.isnan(), 0).sum()


def _histogram(position_RT: torch.Tensor, allowed_R12: torch.Tensor, config: LDMConfig) -> torch.Tensor:
    """The mass in each allowed bin of a normal distribution around a position (arXiv 2403.03950, section 3.1)."""
    lowest_R1, highest_R1 = allowed_R12.unbind(-1)
    center_RT1 = position_RT.clamp(lowest_R1, highest_R1 + 1).unsqueeze(-1)
    edges = torch.arange(config.num_bins + 1, device=position_RT.device)
    edges = edges.clamp(
        lowest_R1.unsqueeze(-1), highest_R1.unsqueeze(-1) + 1
    )  # bins that are not allowed have no width
    mass_RTK = torch.erf((edges - center_RT1) / (config.action_smoothing * math.sqrt(2))).diff(dim=-1)
    return mass_RTK / mass_RTK.sum(-1, keepdim=True)
