"""Direct preference optimisation.

for each batch of pairs (x, y_w, y_l):
    h = beta [log pi(y_w|x) - log pi_ref(y_w|x) - log pi(y_l|x) + log pi_ref(y_l|x)]
    L = -1/P sum log sigmoid(h)                           # or the hinge, or IPO's square
"""

from __future__ import annotations

from torch import Tensor, nn

from rlhf.losses import LossOutput, dpo_loss
from rlhf.models.policy import Reference
from rlhf.recipe.training import DpoRecipe
from rlhf.tokens.segments import SegmentBatch
from rlhf.train.setup import Setup
from rlhf.train.supervised import Supervised


class Dpo(Supervised):
    """Pairs in, a policy out. The prompt is computed once for both completions."""

    def __init__(self, recipe: DpoRecipe, setup: Setup) -> None:
        self.section = section = recipe.dpo
        policy = setup.policy()
        if section.cache_reference:
            setup = setup.referenced(policy, section.reference)
        super().__init__(policy, recipe, setup)
        self.reference = None if section.cache_reference else Reference(policy, setup.other_policy(section.reference))

    def count(self, batch: SegmentBatch) -> float:
        return batch.num_segments

    def forward_loss(self, module: nn.Module, batch: SegmentBatch, count: Tensor) -> LossOutput:
        known = batch.ref_logprobs if self.reference is None else self.reference(batch)
        assert known is not None
        ref_chosen, ref_rejected = self._sides(batch, known)
        chosen, rejected = self._sides(batch, module(batch))
        return dpo_loss(
            chosen_logprobs=chosen,
            rejected_logprobs=rejected,
            ref_chosen_logprobs=ref_chosen,
            ref_rejected_logprobs=ref_rejected,
            beta=self.section.beta,
            loss_type=self.section.loss_type,
            label_smoothing=self.section.label_smoothing,
            num_pairs=count,
        )

    @staticmethod
    def _sides(batch: SegmentBatch, logprobs: Tensor) -> tuple[Tensor, Tensor]:
        """Token log-probabilities [N] as sums over the chosen and the rejected completions, [P] each."""
        chosen, rejected = batch.sum_rows(logprobs).view(-1, 2).unbind(1)
        return chosen, rejected
