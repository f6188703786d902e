"""The one definition of masked mean, moments and whitening, and the shape of a loss's result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossOutput:
    """A microbatch's share of the global loss, and its share of each metric's global mean (all scalars).

    `metrics` are detached; summing them over microbatches and ranks gives the means.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is true; both [...] of one shape, result a scalar. 0 where nothing is true."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def masked_moments(
    values: Tensor, mask: Tensor, *, reduce: Callable[[Tensor], Tensor] = lambda total: total
) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of `values` where `mask` is true. `reduce` sums a tensor over all ranks."""
    values = torch.where(mask, values, 0)  # before any arithmetic: 0 x inf in a backward pass is NaN
    count, total = reduce(torch.stack([mask.sum().to(values.dtype), values.sum()]))
    mean = total / count.clamp(min=1)
    squares = reduce(torch.where(mask, (values - mean) ** 2, 0).sum())
    return mean, squares / (count - 1).clamp(min=1)


def whiten(values: Tensor, mask: Tensor, *, mean: Tensor, variance: Tensor, shift_mean: bool = True) -> Tensor:
    """(values - mean) / sqrt(variance + 1e-8), zero outside the mask; `shift_mean=False` adds the mean back.

    Advantages are whitened to mean zero; rewards keep their mean, or the sign of the reward would be lost
    (Huang et al. 2024, https://arxiv.org/abs/2403.17031, detail on reward whitening).
    """
    scaled = (torch.where(mask, values, 0) - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, scaled if shift_mean else scaled + mean, 0)
