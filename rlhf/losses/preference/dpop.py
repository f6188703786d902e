"""DPO-positive: DPO that may not pay for a margin with the chosen completion's likelihood."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpop(*, chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float, dpop_lambda: float) -> Tensor:
    """DPOP (Pal et al. 2024, Smaug, https://arxiv.org/abs/2402.13228, eq. 3): l = -s(h - beta lambda max(0, -r_w))."""
    lost = (-chosen_logratios).relu()
    return -logsigmoid(beta * (chosen_logratios - rejected_logratios - dpop_lambda * lost))
