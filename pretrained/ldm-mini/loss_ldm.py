"""The training loss: cross-entropy of the reference actions' bins, from hidden states, a piece of the logits at a time.

Shapes: B rows, R some of them, T transitions, A action slots, H the hidden size, K the number of bins.
"""

import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from .configuration_ldm import LDMConfig
from .quantization_ldm import ActionCode
from .spaces_ldm import ABSENT, CONTINUOUS, DISCRETE

_POSITIONS = 8192
"""Transitions whose logits, 1024 of one slot each, are in memory at a time: 32 MB in float32."""


def action_loss(
    hidden_BTH: torch.Tensor,
    weight_AKH: torch.Tensor,
    labels_BTA: torch.Tensor,
    kinds_BA: torch.Tensor,
    bounds_BA2: torch.Tensor,
    config: LDMConfig,
) -> torch.Tensor:
    """Cross-entropy in nats, averaged over the slots of a transition and summed over transitions.

    All logits of a batch would take more memory than the model: A x 1024 for each transition. They are made for the slots
    that rows have, in pieces, forgotten, and made again for the backward pass.

    Args:
        hidden_BTH: what the backbone says.
        weight_AKH: the action head, flat: (A x K, H).
        labels_BTA: raw slot values of the reference actions; NaN where there is none.
        kinds_BA, bounds_BA2: of the action slots.
        config: of the model.
    """
    share_B = 1 / (kinds_BA != ABSENT).sum(1)
    on_host_BA = kinds_BA.cpu()
    rows_at_once = max(1, _POSITIONS // hidden_BTH.shape[1])
    total = hidden_BTH.new_zeros((), dtype=torch.float32)
    for slot, weight_KH in enumerate(weight_AKH.split(config.num_bins)[: kinds_BA.shape[1]]):
        for kind in (CONTINUOUS, DISCRETE):
            for rows in (on_host_BA[:, slot] == kind).nonzero().squeeze(1).split(rows_at_once):
                rows_R = rows.to(hidden_BTH.device)
                actions = labels_BTA[rows_R, :, slot], kind, bounds_BA2[rows_R, slot]
                arguments = (hidden_BTH, weight_KH, rows_R, *actions, share_B[rows_R], config)
                if torch.is_grad_enabled():
                    total = total + checkpoint(_slot_loss, *arguments, use_reentrant=False, preserve_rng_state=False)
                else:
                    total = total + _slot_loss(*arguments)
    return total


def mask_bins(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Logits (..., K) with bins outside ``allowed`` (..., 2), lowest and highest, at the lowest value."""
    bins = torch.arange(logits.shape[-1], device=logits.device)
    outside = (bins < allowed[..., :1]) | (bins > allowed[..., 1:])
    return logits.masked_fill(outside, torch.finfo(logits.dtype).min)


def _slot_loss(
    hidden_BTH: torch.Tensor,
    weight_KH: torch.Tensor,
    rows_R: torch.Tensor,
    labels_RT: torch.Tensor,
    kind: int,
    bounds_R2: torch.Tensor,
    share_R: torch.Tensor,
    config: LDMConfig,
) -> torch.Tensor:
    """Cross-entropy of one action slot, summed over transitions, of rows where it is of one kind."""
    code = ActionCode.of(config)
    values_RT, bounds_R12 = labels_RT.nan_to_num(), bounds_R2.unsqueeze(1)
    kinds_11 = torch.full((1, 1), kind, device=labels_RT.device)
    allowed_R12 = code.allowed(kinds_11, bounds_R12)
    logits_RTK = F.linear(hidden_BTH[rows_R], weight_KH).float()
    if config.mask_training_logits:
        logits_RTK = mask_bins(logits_RTK, allowed_R12)
    likelihood_RTK = logits_RTK.log_softmax(-1)
    if kind == CONTINUOUS and config.action_smoothing:
        target_RTK = _histogram(code.position(values_RT, bounds_R12), allowed_R12, config)
        losses_RT = -(target_RTK * likelihood_RTK).sum(-1)
    else:
        bins_RT = code.encode(values_RT, kinds_11, bounds_R12)
        losses_RT = -likelihood_RTK.gather(-1, bins_RT.unsqueeze(-1)).squeeze(-1)
    return (losses_RT.masked_fill(labels_RT.isnan(), 0) * share_R.unsqueeze(1)).sum()


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
