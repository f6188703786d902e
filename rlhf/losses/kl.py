"""The KL penalty: per-token estimators, and the coefficient that weighs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k1: log pi(y_t) - log pi_ref(y_t), the unbiased single-sample estimate of KL(pi || pi_ref) per token, any shape.

    It may be negative at a token; its mean over the policy's own samples is the KL (http://joschu.net/blog/kl-approx.html).
    """
    return logprobs - ref_logprobs


class KlController(Protocol):
    """What weighs the KL penalty of an iteration, and learns from the KL it measured."""

    value: float

    def update(self, kl: float, episodes: int) -> None: ...


@dataclass
class FixedKl:
    """A constant coefficient."""

    value: float

    def update(self, kl: float, episodes: int) -> None:
        """Nothing changes."""


@dataclass
class AdaptiveKl:
    """Proportional control of the coefficient (Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2.2)."""

    value: float
    target: float
    horizon: int

    def update(self, kl: float, episodes: int) -> None:
        """value *= 1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon. kl: mean per episode, in nats."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * episodes / self.horizon
