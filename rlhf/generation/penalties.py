"""Repetition penalties: transformers' own processors, applied row by row.

Used by `decoding`. transformers' `generate` applies them to the padded batch. There, a row's padding counts as text, so a short
prompt beside a long one is penalised for tokens that it does not have. Training has no penalties: they would bias PPO's ratios,
so its sampling section has no such keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor, NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from rlhf.recipe.sections import SamplingSection
from rlhf.recipe.synthesis import TextSampling


class Penalties:
    """`repetition_penalty` (CTRL, Keskar et al. 2019, section 4.1) and `no_repeat_ngram_size`; false if neither is set."""

    def __init__(self, sampling: SamplingSection) -> None:
        self._processors: list[LogitsProcessor] = []
        if not isinstance(sampling, TextSampling):
            return
        if sampling.repetition_penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.no_repeat_ngram_size > 0:
            self._processors.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size))

    def __bool__(self) -> bool:
        return bool(self._processors)

    def __call__(self, logits: Tensor, contexts: list[list[int]]) -> Tensor:
        """logits [B, V], and the ids of each row (prompt and completion so far) -> logits [B, V] in float32."""
        rows = []
        for row, context in zip(logits.float(), contexts, strict=True):
            ids, scores = torch.tensor([context], device=logits.device), row[None].clone()
            for processor in self._processors:
                scores = processor(ids, scores)
            rows.append(scores)
        return torch.cat(rows)
