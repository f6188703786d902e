"""Direct preference optimisation, and the losses of its family.

for each batch of pairs (x, y_w, y_l):
    log pi(y|x) of both completions, and log pi_ref(y|x) where a loss compares with a reference
    L = sum over the recipe's losses of their weight times 1/P sum l(pair)     # rlhf/losses/preference/

DPO itself: l = -log sigmoid(beta [log pi(y_w|x) - log pi_ref(y_w|x) - log pi(y_l|x) + log pi_ref(y_l|x)])
"""

from __future__ import annotations

from torch import Tensor, nn

from rlhf.losses import LossOutput, preference_loss
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
        self.reference = None
        if section.needs_reference and not section.cache_reference:
            self.reference = Reference(policy, setup.other_policy(section.reference))

    def count(self, batch: SegmentBatch) -> float:
        return batch.num_segments

    def forward_loss(self, module: nn.Module, batch: SegmentBatch, count: Tensor) -> LossOutput:
        known = batch.ref_logprobs if self.reference is None else self.reference(batch)
        reference = None if known is None else _sides(batch.sum_rows(known))
        chosen, rejected = _sides(batch.sum_rows(module(batch)))
        chosen_lengths, rejected_lengths = _sides(batch.lengths)
        return preference_loss(
            losses=self.section.weights,
            settings=self.section.settings,
            num_pairs=count,
            chosen_logprobs=chosen,
            rejected_logprobs=rejected,
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
            reference=reference,
        )


def _sides(values: Tensor) -> tuple[Tensor, Tensor]:
    """What completions have, [2P], as what the chosen and the rejected ones have, [P] each."""
    chosen, rejected = values.view(-1, 2).unbind(1)
    return chosen, rejected
