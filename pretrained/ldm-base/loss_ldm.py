"""The training loss: cross-entropy of action bins, whose logits are never in memory for a whole batch.

All of them would take more than the model does: A x K for each transition. Action head and loss are therefore one
function, which makes logits slot by slot, for the rows that have the slot and a piece at a time, and their gradient with
them (as chunked linear cross-entropies do, arXiv 2410.10989). Those of torch and Liger take neither targets that are zero
in all but a few bins, without holding the others, nor bins that are allowed in one row and not in another.

Shapes: B rows, R some of them, T transitions, A action slots, H the hidden size, K the number of bins, W the bins that a
target covers.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .configuration_ldm import LDMConfig
from .packing_ldm import RowGroups, SlotRows
from .quantization_ldm import ActionCode
from .spaces_ldm import ABSENT, CONTINUOUS, DISCRETE

_POSITIONS = 8192
"""Transitions whose logits of one slot are in memory at a time: 32 MB in float32."""

_STANDARD_DEVIATIONS = 6.0
"""How far a smoothed target reaches: what lies beyond is 2e-9 of it, less than float32 can add to 1."""


def action_loss(
    head: Any,
    hidden_BTH: torch.Tensor,
    labels_BTA: torch.Tensor,
    kinds_BA: torch.Tensor,
    bounds_BA2: torch.Tensor,
    groups: RowGroups | None,
    config: LDMConfig,
) -> torch.Tensor:
    """Cross-entropy in nats, averaged over the slots of a transition and summed over transitions.

    Args:
        head: the action head's weights, (A, K, H), or what makes logits (R, T, A, K) of hidden states (R, T, H).
        hidden_BTH: what the backbone says.
        labels_BTA: raw slot values of the reference actions; NaN where there is none.
        kinds_BA, bounds_BA2: of the action slots.
        groups: which rows have which slot; by default every slot is computed for all rows, as either kind.
        config: of the model.
    """
    counts_B = (kinds_BA != ABSENT).sum(1).clamp(min=1)
    if groups is not None:
        *_, slots = groups.split()
    else:
        every = torch.arange(len(kinds_BA), device=kinds_BA.device)
        slots = [SlotRows(slot, kind, every) for slot in range(kinds_BA.shape[1]) for kind in (CONTINUOUS, DISCRETE)]
    targets = _Targets(labels_BTA, kinds_BA, bounds_BA2, 1 / counts_B, slots, config)
    if not isinstance(head, torch.Tensor):
        return _unfused_loss(head, hidden_BTH, targets)
    if torch.is_grad_enabled() and (hidden_BTH.requires_grad or head.requires_grad):
        loss: torch.Tensor = _LinearCrossEntropy.apply(hidden_BTH, head, targets)
        return loss
    return sum(
        (targets.loss(_logits(hidden_BTH, head, piece), piece)[0] for piece in targets.pieces()),
        hidden_BTH.new_zeros((), dtype=torch.float32),
    )


def mask_bins(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Logits (..., K) with bins outside ``allowed`` (..., 2), lowest and highest, at the lowest value."""
    bins = torch.arange(logits.shape[-1], device=logits.device)
    outside = (bins < allowed[..., :1]) | (bins > allowed[..., 1:])
    return logits.masked_fill(outside, torch.finfo(logits.dtype).min)


class _Targets:
    """What a batch's logits are compared with, slot by slot."""

    def __init__(
        self,
        labels_BTA: torch.Tensor,
        kinds_BA: torch.Tensor,
        bounds_BA2: torch.Tensor,
        weights_B: torch.Tensor,
        slots: list[SlotRows],
        config: LDMConfig,
    ):
        self._labels, self._kinds, self._bounds, self._weights = labels_BTA, kinds_BA, bounds_BA2, weights_B
        self._slots, self._config, self._code = slots, config, ActionCode.of(config)

    def pieces(self) -> Iterator[SlotRows]:
        """The rows of each slot, as many at a time as fit in memory."""
        at_once = max(1, _POSITIONS // self._labels.shape[1])
        for slot, kind, rows in self._slots:
            for some in rows.split(at_once):
                yield SlotRows(slot, kind, some)

    def loss(
        self, logits_RTK: torch.Tensor, piece: SlotRows
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss of one slot of some rows, and what its gradient is made of.

        Returns:
            The loss, summed; the bins' log-likelihoods (R, T, K); the bins that the targets cover and their shares
            (R, T, W); and the weight of each transition (R, T), 0 where there is no label.
        """
        slot, kind, rows = piece
        labels_RT, bounds_R12 = self._labels[rows, :, slot], self._bounds[rows, slot].unsqueeze(1)
        kinds_11 = torch.full((1, 1), kind, device=rows.device)
        allowed_R12 = self._code.allowed(kinds_11, bounds_R12)
        logits_RTK = logits_RTK.float()
        if self._config.mask_training_logits:
            logits_RTK = mask_bins(logits_RTK, allowed_R12)
        likelihood_RTK = logits_RTK.log_softmax(-1)
        values_RT = labels_RT.nan_to_num()
        if kind == CONTINUOUS and self._config.action_smoothing:
            bins_RTW, shares_RTW = _histogram(self._code.position(values_RT, bounds_R12), allowed_R12, self._config)
        else:
            # Clamped for rows whose slot is of the other kind: they weigh nothing.
            bins_RTW = (
                self._code.encode(values_RT, kinds_11, bounds_R12).clamp(0, self._config.num_bins - 1).unsqueeze(-1)
            )
            shares_RTW = torch.ones_like(bins_RTW, dtype=torch.float32)
        is_so = self._kinds[rows, slot] == kind
        weights_RT = (self._weights[rows] * is_so).unsqueeze(1).masked_fill(labels_RT.isnan(), 0)
        losses_RT = -(shares_RTW * likelihood_RTK.gather(-1, bins_RTW)).sum(-1)
        return (losses_RT * weights_RT).sum(), likelihood_RTK, bins_RTW, shares_RTW, weights_RT


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss of hidden states (B, T, H) and an action head (A, K, H); the gradients are made with it."""

    @staticmethod
    def forward(ctx: Any, hidden_BTH: torch.Tensor, head_AKH: torch.Tensor, targets: _Targets) -> torch.Tensor:
        total = hidden_BTH.new_zeros((), dtype=torch.float32)
        wanted = ctx.needs_input_grad[:2]
        hidden_gradient = torch.zeros_like(hidden_BTH, dtype=torch.float32) if wanted[0] else None
        head_gradient = torch.zeros_like(head_AKH, dtype=torch.float32) if wanted[1] else None
        for piece in targets.pieces():
            logits_RTK = _logits(hidden_BTH, head_AKH, piece)
            loss, likelihood_RTK, bins_RTW, shares_RTW, weights_RT = targets.loss(logits_RTK, piece)
            total = total + loss
            gradient_RTK = likelihood_RTK.exp_().scatter_add_(-1, bins_RTW, -shares_RTW).mul_(weights_RT.unsqueeze(-1))
            gradient_RTK = gradient_RTK.to(logits_RTK.dtype)
            if hidden_gradient is not None:
                hidden_gradient.index_add_(0, piece.rows, (gradient_RTK @ head_AKH[piece.slot]).float())
            if head_gradient is not None:
                head_gradient[piece.slot] += gradient_RTK.flatten(0, 1).T @ hidden_BTH[piece.rows].flatten(0, 1)
        ctx.save_for_backward(hidden_gradient, head_gradient)
        ctx.dtypes = hidden_BTH.dtype, head_AKH.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        hidden_gradient, head_gradient = (
            None if each is None else (each * gradient).to(dtype) for each, dtype in found
        )
        return hidden_gradient, head_gradient, None


def _logits(hidden_BTH: torch.Tensor, head_AKH: torch.Tensor, piece: SlotRows) -> torch.Tensor:
    return hidden_BTH[piece.rows] @ head_AKH[piece.slot].T


def _unfused_loss(
    head: Callable[[torch.Tensor], torch.Tensor], hidden_BTH: torch.Tensor, targets: _Targets
) -> torch.Tensor:
    """The same for a head of which nothing is known: its logits are forgotten, and made again for the backward pass."""

    def loss(hidden_RTH: torch.Tensor, piece: SlotRows) -> torch.Tensor:
        return targets.loss(head(hidden_RTH)[:, :, piece.slot], piece)[0]

    parts = [
        checkpoint(loss, hidden_BTH[piece.rows], piece, use_reentrant=False, preserve_rng_state=False)
        for piece in targets.pieces()
    ]
    return torch.stack(parts).sum()


def _histogram(
    position_RT: torch.Tensor, allowed_R12: torch.Tensor, config: LDMConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mass in each allowed bin of a normal distribution around a position (arXiv 2403.03950, section 3.1).

    Returns:
        The bins that it covers, int64 of shape (R, T, W), and their shares of the mass.
    """
    reach = math.ceil(_STANDARD_DEVIATIONS * config.action_smoothing)
    width = min(config.num_bins, 2 * reach + 2)
    lowest_R1, highest_R1 = allowed_R12.unbind(-1)
    center_RT1 = position_RT.clamp(lowest_R1, highest_R1 + 1).unsqueeze(-1)
    first_RT1 = (center_RT1.floor().long() - reach).clamp(0, config.num_bins - width)
    edges_RTV = first_RT1 + torch.arange(width + 1, device=position_RT.device)
    ends_RTV = edges_RTV.clamp(lowest_R1.unsqueeze(-1), highest_R1.unsqueeze(-1) + 1)  # other bins have no width
    mass_RTW = torch.erf((ends_RTV - center_RT1) / (config.action_smoothing * math.sqrt(2))).diff(dim=-1)
    return edges_RTV[..., :-1], mass_RTW / mass_RTW.sum(-1, keepdim=True)
