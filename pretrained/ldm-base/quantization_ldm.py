"""Discretisation: the paper's mu-law (section 4.3, after Gato, arXiv 2205.06175 appendix B), and actions as bins."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from .spaces_ldm import CONTINUOUS

MU_LAW, UNIFORM = "mu_law", "uniform"
"""How continuous actions are cut into bins: by the mu-law, or evenly between the bounds of their space."""


def mu_law_encode(values: torch.Tensor, mu: float, max_value: float, num_bins: int) -> torch.Tensor:
    """Bins of real values: ``sgn(x) log(mu |x| + 1) / log(mu M + 1)``, clipped to [-1, 1], cut into equal bins.

    Args:
        values: any shape, finite or infinite; infinities and magnitudes above ``max_value`` saturate at the end bins.
        mu, max_value: mu and M of the formula.
        num_bins: number of bins.

    Returns:
        int64 of the same shape, from 0 to ``num_bins - 1``.
    """
    return _mu_law_position(values, mu, max_value, num_bins).floor().long().clamp(0, num_bins - 1)


def mu_law_decode(bins: torch.Tensor, mu: float, max_value: float, num_bins: int) -> torch.Tensor:
    """The value in the middle of each bin; the inverse of ``mu_law_encode`` up to the width of a bin."""
    companded = (bins.double() + 0.5) * (2 / num_bins) - 1
    magnitude = torch.expm1(companded.abs() * math.log1p(mu * max_value)) / mu
    return (torch.sign(companded) * magnitude).float()


def _mu_law_position(values: torch.Tensor, mu: float, max_value: float, num_bins: int) -> torch.Tensor:
    values = values.float().clamp(-max_value, max_value)
    companded = torch.sign(values) * torch.log1p(mu * values.abs()) / math.log1p(mu * max_value)
    return (companded + 1) * (num_bins / 2)


@dataclass(frozen=True)
class ActionCode:
    """Actions as bins and back, the same in training and in rollout.

    A discrete slot's symbol is its bin. A continuous slot's bins are those of the mu-law, or, with ``uniform``, cut its
    range evenly; where a bound lies beyond ``max_value`` (is infinite, say) the mu-law remains.

    ``values`` and ``bins`` may have any shape, against which ``kinds`` and ``bounds[..., 0]`` are broadcast: ``bounds`` are
    the lowest and highest value of a slot, 0 and n - 1 of a discrete one.
    """

    mu: float
    max_value: float
    num_bins: int
    quantization: str = MU_LAW

    @classmethod
    def of(cls, settings: Any) -> "ActionCode":
        """The code of a configuration or a processor: of anything with its four settings."""
        return cls(settings.mu, settings.max_value, settings.num_bins, settings.action_quantization)

    def position(self, values: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """Where continuous values lie on the axis of bins, float from 0 to ``num_bins``: bin k is from k to k + 1."""
        position = _mu_law_position(values, self.mu, self.max_value, self.num_bins)
        if self.quantization == UNIFORM:
            low, high = bounds.unbind(-1)
            even = (values.clamp(low, high) - low) / (high - low) * self.num_bins
            position = torch.where(self._is_cut_evenly(bounds), even, position)
        return position

    def encode(self, values: torch.Tensor, kinds: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """Bins of slot values, int64; a continuous value beyond its bounds is in the bin of the bound."""
        lowest, highest = self.allowed(kinds, bounds).unbind(-1)
        bins = self.position(values, bounds).floor().long().clamp(lowest, highest)
        return torch.where(kinds == CONTINUOUS, bins, values.long())

    def allowed(self, kinds: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """The lowest and highest bin that each slot may take, int64 of the shape of ``bounds``."""
        ends = [self.position(bound, bounds).floor().long().clamp(0, self.num_bins - 1) for bound in bounds.unbind(-1)]
        continuous = (kinds == CONTINUOUS).unsqueeze(-1)
        return torch.where(continuous, torch.stack(ends, -1), bounds.clamp(0, self.num_bins - 1).long())

    def decode(self, bins: torch.Tensor, kinds: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """The slot values that bins stand for, float32: the middle of a bin, within the bounds; the symbol itself."""
        values = mu_law_decode(bins, self.mu, self.max_value, self.num_bins)
        low, high = bounds.unbind(-1)
        if self.quantization == UNIFORM:
            even = low + (bins + 0.5) * ((high - low) / self.num_bins)
            values = torch.where(self._is_cut_evenly(bounds), even, values)
        return torch.where(kinds == CONTINUOUS, values.clamp(low, high), bins.float())

    def _is_cut_evenly(self, bounds: torch.Tensor) -> torch.Tensor:
        return (bounds.abs().amax(-1) <= self.max_value) & (bounds[..., 1] > bounds[..., 0])
