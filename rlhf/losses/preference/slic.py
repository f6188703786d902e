"""SLiC's hinge: nothing more is learnt from a pair whose margin is wide enough."""

from __future__ import annotations

from torch import Tensor


def hinge(*, chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float) -> Tensor:
    """SLiC (Zhao et al. 2023, https://arxiv.org/abs/2305.10425, eq. 2) of DPO's margin: l = max(0, 1 - h)."""
    return (1 - beta * (chosen_logratios - rejected_logratios)).relu()
