"""From a score per completion to an advantage per token: KL-penalised rewards, and generalised advantage estimation."""

from __future__ import annotations

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """r_t = -kl_coef * kl_t, and the score added at each completion's last token: the one place it lands.

    scores: [M]. kl: [M, C]. mask: true on the completion's tokens (the stop token included), [M, C]. Returns [M, C].
    """
    last = (mask.cumsum(1) * mask).argmax(1, keepdim=True)  # the last true place, on whichever side the padding is
    return torch.where(mask, (-kl_coef * kl).scatter_add(1, last, scores[:, None].to(kl.dtype)), 0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t); returns = A + V.

    rewards, values, mask: [M, C]; V after a completion's last token is zero (the episode ends there). Returns advantages
    and returns, [M, C], zero outside the mask. Schulman et al. 2015, https://arxiv.org/abs/1506.02438, eq. 16.
    """
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantage = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(advantage)
    columns = []
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        advantage = torch.where(mask[:, t], delta + gamma * lam * advantage, 0)
        following = values[:, t]
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, torch.where(mask, advantages + values, 0)
