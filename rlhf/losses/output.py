"""The shape of a loss's result, and the one definition of a mean over many microbatches."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class LossOutput:
    """A microbatch's share of the global loss, and its share of each metric's global mean (all scalars).

    `metrics` are detached; summing them over microbatches and ranks gives the means.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


def share_of_mean(values: Tensor, count: int | Tensor) -> Tensor:
    """This microbatch's share of a mean over `count` values, a scalar: the shares of all microbatches and ranks add up
    to the mean.
    """
    return values.sum() / count
