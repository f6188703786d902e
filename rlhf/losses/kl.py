"""The KL penalty: per-token estimators, and the coefficient that weighs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from rlhf.losses.output import LossOutput, share_of_mean

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: Estimator = "k1") -> Tensor:
    """An estimate of KL(pi || pi_ref) per token, any shape, with d = log pi(y_t) - log pi_ref(y_t).

    k1 = d: unbiased, negative at some tokens. k2 = d^2 / 2: biased, its gradient is that of the KL. k3 = exp(-d) - 1 + d: unbiased,
    never negative. Over the policy's own samples (Schulman 2020, http://joschu.net/blog/kl-approx.html).
    """
    difference = logprobs - ref_logprobs
    match estimator:
        case "k1":
            return difference
        case "k2":
            return 0.5 * difference**2
        case "k3":
            return (-difference).exp() - 1 + difference


def kl_loss(*, logprobs: Tensor, ref_logprobs: Tensor, estimator: Estimator, num_tokens: int | Tensor) -> LossOutput:
    """L = 1/N sum_t KL_t, by the estimator k2 or k3. logprobs, ref_logprobs: [N]."""
    loss = share_of_mean(kl_estimate(logprobs, ref_logprobs, estimator), num_tokens)
    return LossOutput(loss, {"kl/loss": loss.detach()})


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
