"""Mu-law discretisation of continuous values (paper section 4.3, after Gato, arXiv 2205.06175 appendix B)."""

import math

import torch


def mu_law_encode(values: torch.Tensor, mu: float, max_value: float, num_bins: int) -> torch.Tensor:
    """Bins of real values: ``sgn(x) log(mu |x| + 1) / log(mu M + 1)``, clipped to [-1, 1], cut into equal bins.

    Args:
        values: any shape, finite or infinite; infinities and magnitudes above ``max_value`` saturate at the end bins.
        mu, max_value: mu and M of the formula.
        num_bins: number of bins.

    Returns:
        int64 of the same shape, from 0 to ``num_bins - 1``.
    """
    values = values.float().clamp(-max_value, max_value)
    companded = torch.sign(values) * torch.log1p(mu * values.abs()) / math.log1p(mu * max_value)
    return ((companded + 1) * (num_bins / 2)).floor().long().clamp(0, num_bins - 1)


def mu_law_decode(bins: torch.Tensor, mu: float, max_value: float, num_bins: int) -> torch.Tensor:
    """The value in the middle of each bin; the inverse of ``mu_law_encode`` up to the width of a bin."""
    companded = (bins.double() + 0.5) * (2 / num_bins) - 1
    magnitude = torch.expm1(companded.abs() * math.log1p(mu * max_value)) / mu
    return (torch.sign(companded) * magnitude).float()
