"""From a score per completion to an advantage per token: KL-penalised rewards, and generalised advantage estimation."""

from __future__ import annotations

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, lengths: Tensor, *, kl_coef: float) -> Tensor:
    """r_t = -kl_coef * kl_t, and the score added at each completion's last token: the one place where the score lands.

    scores: [M]. kl: [N], the tokens of one completion after another (the stop token is one of them). lengths: tokens of
    each completion, at least one, [M]. Returns [N].
    """
    last = lengths.cumsum(0) - 1
    return (-kl_coef * kl).index_add(0, last, scores.to(kl.dtype))


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
