"""PPO's clipped losses (Schulman et al. 2017, https://arxiv.org/abs/1707.06347) over a completion's tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlhf.losses.output import LossOutput, share_of_mean


def policy_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    cliprange: float,
    cliprange_high: float | None = None,
    num_tokens: int | Tensor,
    weights: Tensor | None = None,
) -> LossOutput:
    """L = 1/N sum_t w_t max(-A_t rho_t, -A_t clip(rho_t, 1 - c, 1 + c_high)), rho = exp(logprobs - old_logprobs)  (eq. 7).

    All tensors [N]. c_high = c if it is None; a larger one lets rare tokens become likely (DAPO, Yu et al. 2025,
    https://arxiv.org/abs/2503.14476, section 3.1). num_tokens: completion tokens in the whole optimizer step, so that a long
    completion's tokens weigh as much as a short one's. weights: w, 1 if it is None; see `truncated_weights`.
    """
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + (cliprange if cliprange_high is None else cliprange_high))

    losses = torch.maximum(unclipped, clipped)
    loss = share_of_mean(losses if weights is None else weights * losses, num_tokens)
    return LossOutput(
        loss,
        {
            "policy/loss": loss.detach(),
            "policy/clip_fraction": share_of_mean((clipped > unclipped).to(ratio.dtype), num_tokens).detach(),
            "policy/approx_kl": share_of_mean(0.5 * log_ratio**2, num_tokens).detach(),
            "policy/ratio": share_of_mean(ratio, num_tokens).detach(),
        },
    )


def truncated_weights(old_logprobs: Tensor, engine_logprobs: Tensor, *, cap: float) -> Tensor:
    """w_t = min(exp(old_logprobs - engine_logprobs), cap), all [N]: how much likelier the trainer finds each sampled token than
    the engine that sampled it.

    With these weights the loss is a mean over the trainer's policy and not over the engine's, which rounds otherwise; the cap
    keeps one rare token from ruling it (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training", https://fengyao.notion.site/off-policy-rl). Where the two agree exactly, every weight is exactly 1.
    """
    return (old_logprobs - engine_logprobs).exp().clamp(max=cap)


def value_loss(
    *,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    cliprange_value: float,
    num_tokens: int | Tensor,
) -> LossOutput:
    """L = 1/N sum_t 1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2), all tensors [N].

    The clipping is the original implementation's (Huang et al. 2023, the 37 implementation details of PPO, detail 9).
    """
    clipped_values = torch.minimum(torch.maximum(values, old_values - cliprange_value), old_values + cliprange_value)
    unclipped = (values - returns) ** 2
    clipped = (clipped_values - returns) ** 2
    loss = 0.5 * share_of_mean(torch.maximum(unclipped, clipped), num_tokens)
    return LossOutput(
        loss,
        {
            "value/loss": loss.detach(),
            "value/clip_fraction": share_of_mean((clipped > unclipped).to(values.dtype), num_tokens).detach(),
            "value/error": share_of_mean(unclipped, num_tokens).detach(),
        },
    )


def missing_eos_scores(scores: Tensor, ended: Tensor, *, mode: Literal["replace", "penalty"], value: float) -> Tensor:
    """Scores where a completion that never reached a stop token gets `value` instead, or its score less `value`.

    scores: [M]. ended: true where a stop token was sampled, [M]. A penalty is subtracted, so it is not negative.
    """
    unfinished = torch.full_like(scores, value) if mode == "replace" else scores - value
    return torch.where(ended, scores, unfinished)
