"""The chosen side's likelihood, as a part of a mix: it keeps the chosen completions likely while the margin grows."""

from __future__ import annotations

from torch import Tensor


def sft(*, chosen_logprobs: Tensor, chosen_lengths: Tensor) -> Tensor:
    """The negative log-likelihood of a chosen token (Pang et al. 2024, iterative RPO, https://arxiv.org/abs/2404.19733, eq. 1):
    l = -log pi(y_w|x) / |y_w|. Each pair counts alike; in TRL's `sft`, each token does.
    """
    return -chosen_logprobs / chosen_lengths
