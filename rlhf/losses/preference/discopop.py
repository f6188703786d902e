"""DiscoPOP: a loss that a language model found in a search over losses."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def discopop(*, chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float, discopop_tau: float) -> Tensor:
    """DiscoPOP (Lu et al. 2024, https://arxiv.org/abs/2406.08414, eq. 5), with m = sigmoid(h / tau):
    l = -(1 - m) s(h) + m exp(-h).

    m exp(-h) is exp(s(h / tau) - h): of a very negative margin, the product would be zero times infinity.
    """
    h = beta * (chosen_logratios - rejected_logratios)
    return -(-h / discopop_tau).sigmoid() * logsigmoid(h) + (logsigmoid(h / discopop_tau) - h).exp()
