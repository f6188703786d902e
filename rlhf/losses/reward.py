"""The reward model's loss: Bradley-Terry over pairs, or over all pairs of whole rankings.

A ranking's K completions are scored once and compared K(K-1)/2 times, its pairs averaged so that one prompt is one vote
(Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5): comparing pairs as separate rows would train on each
completion K-1 times an epoch and overfit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.losses.output import LossOutput, share_of_mean


@dataclass(frozen=True)
class RankedPairs:
    """Indices of the better and the worse completion of each compared pair, and the pair's weight, all [P]."""

    chosen: Tensor
    rejected: Tensor
    weights: Tensor  # float32: 1 / pairs in its segment, so that a segment's weights sum to one


def ranked_pairs(grades: Tensor, segments: Tensor) -> RankedPairs:
    """Every pair of completions of one segment whose grades differ; ties are not compared.

    grades: higher is better, [M]. segments: the segment of each completion, [M].
    """
    better = (segments[:, None] == segments[None, :]) & (grades[:, None] > grades[None, :])
    chosen, rejected = better.nonzero(as_tuple=True)
    counts = segments[chosen].bincount(minlength=1)
    return RankedPairs(chosen, rejected, 1.0 / counts[segments[chosen]].float())


def rule_accuracy(values: Tensor, pairs: RankedPairs, num_pairs: int | Tensor) -> Tensor:
    """The share of pairs in which the better completion has the larger value; an equal value is half right. values: [M]."""
    right = 0.5 + 0.5 * (values[pairs.chosen] - values[pairs.rejected]).sign()
    return share_of_mean(right * pairs.weights, num_pairs)


def reward_loss(
    *,
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    num_pairs: int | Tensor,
    weights: Tensor | None = None,
    margins: Tensor | None = None,
    center_coefficient: float = 0.0,
) -> LossOutput:
    """L = -1/P sum_i w_i log sigmoid(r_chosen - r_rejected - margin_i) + c/P sum_i w_i (r_chosen + r_rejected)^2.

    chosen_scores, rejected_scores, weights, margins: [P]. num_pairs: sum of the weights in the whole optimizer step
    (pairs, or rankings when a ranking's weights sum to one). The margin is Llama 2's
    (https://arxiv.org/abs/2307.09288, eq. 2), the centring Eisenstein et al.'s (https://arxiv.org/abs/2312.09244).
    """
    difference = chosen_scores - rejected_scores
    losses = -logsigmoid(difference if margins is None else difference - margins)
    if center_coefficient:
        losses = losses + center_coefficient * (chosen_scores + rejected_scores) ** 2

    def mean(values: Tensor) -> Tensor:
        return share_of_mean(values if weights is None else values * weights, num_pairs)

    loss = mean(losses)
    return LossOutput(
        loss,
        {
            "loss": loss.detach(),
            "accuracy": mean((difference > 0).to(difference.dtype)).detach(),
            "margin": mean(difference).detach(),
            "score/chosen": mean(chosen_scores).detach(),
            "score/rejected": mean(rejected_scores).detach(),
        },
    )
