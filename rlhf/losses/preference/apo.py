"""Anchored preference optimisation (D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266): it says where each side goes."""

from __future__ import annotations

from torch import Tensor


def apo_zero(*, chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float) -> Tensor:
    """Eq. 7, chosen up and rejected down: l = 1 - sigmoid(beta r_w) + sigmoid(beta r_l). For chosen completions that are better
    than the model's own.
    """
    return 1 - (beta * chosen_logratios).sigmoid() + (beta * rejected_logratios).sigmoid()


def apo_down(*, chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float) -> Tensor:
    """Eq. 8, both down, and rejected further: l = sigmoid(beta r_w) + 1 - sigmoid(h). For chosen completions that are worse
    than the model's own.
    """
    return (beta * chosen_logratios).sigmoid() + 1 - (beta * (chosen_logratios - rejected_logratios)).sigmoid()
