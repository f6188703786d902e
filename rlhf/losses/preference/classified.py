"""Losses that judge each completion by itself, as good or bad, so that the chosen side's likelihood cannot fall freely."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def nca_pair(*, chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float) -> Tensor:
    """NCA of a pair (Chen et al. 2024, https://arxiv.org/abs/2402.05369):
    l = -s(beta r_w) - 1/2 s(-beta r_w) - 1/2 s(-beta r_l).
    """
    chosen, rejected = beta * chosen_logratios, beta * rejected_logratios
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(*, chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float) -> Tensor:
    """BCO of a pair (Jung et al. 2024, https://arxiv.org/abs/2404.04656): l = -s(beta r_w) - s(-beta r_l).

    The paper may subtract a running mean of the rewards from both. It is zero here, as in TRL 1.16: a mean over earlier
    batches would let the accumulation and the number of processes change the loss. The loss still bounds DPO's from above.
    """
    return -logsigmoid(beta * chosen_logratios) - logsigmoid(-beta * rejected_logratios)
