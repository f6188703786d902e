"""EXO: the reverse KL from the policy's preference to the label's, where DPO takes the forward KL."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid


def exo_pair(*, chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """EXO (Ji et al. 2024, https://arxiv.org/abs/2402.00856, eq. 16), with q = sigmoid(h) and e = `label_smoothing` > 0:
    l = q [log q - log(1 - e)] + (1 - q) [log(1 - q) - log e].
    """
    h = beta * (chosen_logratios - rejected_logratios)
    chosen = h.sigmoid() * (logsigmoid(h) - math.log1p(-label_smoothing))
    return chosen + (-h).sigmoid() * (logsigmoid(-h) - math.log(label_smoothing))
