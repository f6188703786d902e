"""From logits to tokens: temperature, top-k, top-p, min-p, and then one draw for each row.

Used by `decoding`. Unlike `torch.multinomial`, it gets the random numbers from the caller, so each row can have its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.recipe.sections import SamplingSection
from rlhf.recipe.synthesis import TextSampling


def choose_tokens(logits: Tensor, sampling: SamplingSection, noise: Tensor) -> Tensor:
    """One token for each row, where the cumulative probability reaches `noise`: logits [B, V], uniform noise [B] -> [B].

    The order is that of transformers: temperature, top-k, top-p (the smallest set of tokens whose probability reaches p), min-p
    (Nguyen et al. 2024: tokens with less than this share of the likeliest token's probability are removed).
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest_kept = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, float("-inf"))
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1.0:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        kept = torch.zeros_like(probabilities).scatter(1, order, ordered * (before < sampling.top_p))
        probabilities = kept / kept.sum(-1, keepdim=True)
    if isinstance(sampling, TextSampling) and sampling.min_p > 0:
        floor = sampling.min_p * probabilities.max(-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
    cumulative = probabilities.double().cumsum(-1)
    targets = noise.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
