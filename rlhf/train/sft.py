"""Supervised fine-tuning.

for each batch of demonstrations (x, y):
    L = -1/N sum_t log p(y_t | x, y_<t)        # N: trained tokens of the whole optimizer step
"""

from __future__ import annotations

from torch import Tensor, nn

from rlhf.losses import LossOutput, sft_loss
from rlhf.recipe.training import SftRecipe
from rlhf.tokens.segments import SegmentBatch
from rlhf.train.setup import Setup
from rlhf.train.supervised import Supervised


class Sft(Supervised):
    """Demonstrations in, a policy out. Documents never see each other, so a flat batch is packing without its faults."""

    def __init__(self, recipe: SftRecipe, setup: Setup) -> None:
        super().__init__(setup.policy(), recipe, setup)

    def count(self, batch: SegmentBatch) -> float:
        return batch.num_targets

    def forward_loss(self, module: nn.Module, batch: SegmentBatch, count: Tensor) -> LossOutput:
        return sft_loss(logprobs=module(batch), num_tokens=count)
