"""Squared losses: a log-ratio, or a difference of two, has a value that it should reach and not pass."""

from __future__ import annotations

from torch import Tensor


def ipo(*, chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float) -> Tensor:
    """IPO (Azar et al. 2023, https://arxiv.org/abs/2310.12036, eq. 17): l = (r_w - r_l - 1 / (2 beta))^2.

    As in the paper, r is a sum over tokens. TRL divides each by its completion's length.
    """
    return ((beta * (chosen_logratios - rejected_logratios) - 0.5) / beta) ** 2


def sppo_hard(*, chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float) -> Tensor:
    """SPPO (Wu et al. 2024, https://arxiv.org/abs/2405.00675, eq. 4.7) where the chosen completion wins for certain:
    l = (r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2.
    """
    return (chosen_logratios - 0.5 / beta) ** 2 + (rejected_logratios + 0.5 / beta) ** 2
