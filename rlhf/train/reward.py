"""The reward model.

for each batch of rankings (x, y_1, ..., y_K):             # a pair is a ranking of two
    r_k = head(body(x, y_k))                               # each completion once, at its last token
    L   = -1/S sum_s mean_{i better than j} log sigmoid(r_i - r_j [- margin]) [+ c (r_i + r_j)^2]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlhf.losses import LossOutput, RankedPairs, ranked_pairs, reward_loss, rule_accuracy
from rlhf.recipe.training import RewardRecipe
from rlhf.tokens.segments import SegmentBatch
from rlhf.tokens.template import Renderer
from rlhf.train.setup import Setup
from rlhf.train.supervised import Supervised


class Reward(Supervised):
    """Pairs or whole rankings in, a scalar model out."""

    def __init__(self, recipe: RewardRecipe, setup: Setup) -> None:
        super().__init__(setup.scalar_model(), recipe, setup)
        self.section = recipe.reward
        self._end = Renderer(setup.tokenizer, recipe.data.template).with_end([0])[-1]

    def count(self, batch: SegmentBatch) -> float:
        """Segments in which anything is compared: one whose completions are all tied has no loss."""
        return float(ranked_pairs(batch.grades, batch.segments).weights.sum())

    def forward_loss(self, module: nn.Module, batch: SegmentBatch, count: Tensor) -> LossOutput:
        scores = module(batch)
        pairs = ranked_pairs(batch.grades, batch.segments)
        output = reward_loss(
            chosen_scores=scores[pairs.chosen],
            rejected_scores=scores[pairs.rejected],
            num_pairs=count,
            weights=pairs.weights,
            margins=self._margins(batch, pairs.chosen) if self.section.use_margin else None,
            center_coefficient=self.section.center_coefficient,
        )
        return output if module.training else LossOutput(output.loss, output.metrics | self._rules(batch, pairs, count))

    def _rules(self, batch: SegmentBatch, pairs: RankedPairs, count: Tensor) -> dict[str, Tensor]:
        """How often the longer completion, and the one that ends, is the better one: what a model must beat. Equal is a half."""
        ended = batch.input_ids[batch.last] == self._end
        rules = {"longer_wins": batch.lengths, "ended_wins": ended}
        return {name: rule_accuracy(of.float(), pairs, count) for name, of in rules.items()}

    @staticmethod
    def _margins(batch: SegmentBatch, chosen: Tensor) -> Tensor:
        """A pair's known margin, [P]; 0 where the data states none."""
        return torch.as_tensor(batch.margins[batch.segments[chosen]])
