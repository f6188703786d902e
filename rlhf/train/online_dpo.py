"""Online DPO (Guo et al. 2024, https://arxiv.org/abs/2402.04792): DPO on pairs of the policy's own samples, on `online`'s iteration.

2 score     of each prompt's samples the best and the worst become a pair; where all score the same there is none
5 update    DPO's loss over the pairs, or another of its family; the reference is the policy as it started
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf.losses import LossOutput, preference_loss
from rlhf.recipe.online_sections import OnlineDpoSection
from rlhf.train.online import Groups, Online
from rlhf.train.rollout import Rollout


@dataclass(frozen=True)
class Pairs(Rollout):
    """A microbatch of prompts with two samples each."""

    chosen: Tensor  # [P]: which completion is the better one, of each prompt whose two differ in score
    rejected: Tensor  # [P]: the other one


class OnlineDpo(Online[Pairs]):
    """Samples in, pairs of them, a policy out."""

    section: OnlineDpoSection

    def kept(self, groups: Groups, scores: Tensor) -> tuple[Groups, Tensor]:
        """The best and the worst sample of each prompt, in the order in which they were drawn."""
        pairs, own = [], []
        for group, of_group in zip(groups, scores.split([len(group) for group in groups]), strict=True):
            best, worst = int(of_group.argmax()), int(of_group.argmin())
            places = sorted({best, worst}) if best != worst else [0, 1]
            pairs.append([group[place] for place in places])
            own.append(of_group[places])
        return pairs, torch.cat(own)

    def estimate(self, rollouts: Sequence[Rollout]) -> list[Pairs]:
        pairs = []
        for rollout in rollouts:
            chosen, rejected = sides(rollout.scores)
            pairs.append(Pairs(**vars(rollout), chosen=chosen, rejected=rejected))
        return pairs

    def own_metrics(self, experiences: Sequence[Pairs]) -> dict[str, float]:
        """The share of prompts that gave a pair."""
        paired = torch.cat([torch.tensor([len(pairs.chosen), pairs.batch.num_segments]) for pairs in experiences])
        made, prompts = self.ranks.sum(paired.view(-1, 2).sum(0).float()).tolist()
        return {"paired": made / prompts}

    def count(self, batch: Pairs) -> float:
        return float(len(batch.chosen))

    def forward_loss(self, module: nn.Module, batch: Pairs, count: Tensor) -> LossOutput:
        logprobs = module(batch.batch, temperature=self.section.sampling.temperature)
        own, reference = batch.batch.sum_rows(logprobs), batch.batch.sum_rows(batch.ref_logprobs)
        return preference_loss(
            losses=self.section.weights,
            settings=self.section.settings,
            num_pairs=count,
            chosen_logprobs=own[batch.chosen],
            rejected_logprobs=own[batch.rejected],
            chosen_lengths=batch.batch.lengths[batch.chosen],
            rejected_lengths=batch.batch.lengths[batch.rejected],
            reference=(reference[batch.chosen], reference[batch.rejected]),
        )


def sides(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Which of each two completions has the higher score, and which the lower, [P] each; equal ones are no pair. scores: [2S]."""
    first = torch.arange(0, len(scores), 2, device=scores.device)
    apart = first[scores[first] != scores[first + 1]]
    chosen = torch.where(scores[apart] > scores[apart + 1], apart, apart + 1)
    return chosen, 2 * apart + 1 - chosen
