"""Whitening: to mean zero and variance one, over all values of all ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def moments(values: Tensor, *, reduce: Callable[[Tensor], Tensor] = lambda total: total) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of `values`, [N], as scalars. `reduce` sums a tensor over all ranks.

    Two passes: sums of squares lose their digits where the mean is large.
    """
    count, total = reduce(torch.stack([values.new_tensor(values.numel()), values.sum()]))
    mean = total / count.clamp(min=1)
    squares = reduce(((values - mean) ** 2).sum())
    return mean, squares / (count - 1).clamp(min=1)


def whiten(values: Tensor, *, mean: Tensor, variance: Tensor, shift_mean: bool = True) -> Tensor:
    """(values - mean) / sqrt(variance + 1e-8), [N]; `shift_mean=False` adds the mean back.

    Advantages are whitened to mean zero. Rewards keep their mean, or the sign of the reward would be lost
    (Huang et al. 2024, https://arxiv.org/abs/2403.17031, detail on reward whitening).
    """
    scaled = (values - mean) * torch.rsqrt(variance + 1e-8)
    return scaled if shift_mean else scaled + mean
