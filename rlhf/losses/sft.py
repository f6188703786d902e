"""Supervised fine-tuning: the negative log-likelihood of the trained tokens."""

from __future__ import annotations

from torch import Tensor

from rlhf.losses.output import LossOutput, share_of_mean


def sft_loss(*, logprobs: Tensor, num_tokens: int | Tensor) -> LossOutput:
    """L = -1/N sum_t log p(y_t | x, y_<t).

    logprobs: log-probabilities of the trained tokens alone, [N] (or any shape). num_tokens: trained tokens in the whole
    optimizer step, over all microbatches and ranks.
    """
    loss = share_of_mean(-logprobs, num_tokens)
    return LossOutput(loss, {"loss": loss.detach()})
