"""Numbers over the samples of all processes: each has its own, and the result is the same on every one."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import Tensor


class Ranks:
    """Sums, means and the like over all processes of a run."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    @property
    def count(self) -> int:
        """How many processes there are."""
        count: int = self._accelerator.num_processes
        return count

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor of each rank."""
        total: Tensor = self._accelerator.reduce(values.to(self._accelerator.device), "sum")
        return total

    def mean(self, values: Tensor) -> float:
        """The mean of the values of all ranks, whatever their number on each."""
        total, count = self.sum(torch.tensor([float(values.sum()), float(values.numel())]))
        return float(total) / float(count)

    def max(self, values: Tensor) -> float:
        """The largest value of all ranks."""
        return float(self._accelerator.gather(values.max()[None].to(self._accelerator.device)).max())

    def variance(self, values: Tensor) -> float:
        """The mean squared distance from that mean."""
        return self.mean((values - self.mean(values)) ** 2)

    def standard_error(self, values: Tensor) -> float:
        """Of the mean, were the values drawn independently."""
        count = float(self.sum(torch.tensor(float(values.numel()))))
        return math.sqrt(self.variance(values) / count)

    def correlation(self, a: Tensor, b: Tensor) -> float:
        """Pearson's, over pairs of values; 0 where one of them does not vary."""
        a, b = a - self.mean(a), b - self.mean(b)
        spread = (self.mean(a**2) * self.mean(b**2)) ** 0.5
        return self.mean(a * b) / spread if spread > 0 else 0.0

    def weighted_mean(self, mean: float, weight: float) -> float | None:
        """The mean of one mean of each rank by its weight; None where no rank has any."""
        total, count = self.sum(torch.tensor([mean * weight, weight])).tolist()
        return total / count if count else None
