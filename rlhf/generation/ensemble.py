"""Several reward models as one scorer: what their scores combine to, and how far they are apart.

A policy finds the errors of one reward model. Where several models that were trained apart do not agree, the score is less sure;
the least of them, or their mean less a part of their spread, does not pay for such texts (Coste et al. 2024,
https://arxiv.org/abs/2310.02743). Each member speaks in standard deviations of its own data, else the sum of unlike scales would
be the loudest member's word. All of them are adapters on the policy's base where they can lie there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.errors import RecipeError
from rlhf.generation.reward_scorer import RewardScorer, Sample
from rlhf.recipe.scorers import ScorerSection

STD_WEIGHT = 0.5


class Ensemble:
    """`ensemble(samples)` gives each sample's combined score."""

    def __init__(self, section: ScorerSection, members: Sequence[RewardScorer]) -> None:
        for name, member in zip(section.reward_models, members, strict=True):
            if section.normalize and member.scale is None:
                raise RecipeError(
                    f"models: {name} has no scores.json, so its scores have no unit that the others' have too. Train it "
                    "again to have it, or set normalize: false to combine raw scores"
                )
        self.members, self.combine = members, section.combine
        self.std_weight = STD_WEIGHT if section.std_weight is None else section.std_weight

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return self.combined(self.each(samples))

    def each(self, samples: Sequence[Sample]) -> Tensor:
        """Every member's scores, [members, M] float64."""
        return torch.tensor([member(samples) if samples else [] for member in self.members], dtype=torch.float64)

    def combined(self, each: Tensor) -> list[float | None]:
        """One score for each sample."""
        if self.combine == "min":
            return each.min(0).values.tolist()
        less = self.std_weight * _std(each) if self.combine == "mean_minus_std" else 0.0
        return (each.mean(0) - less).tolist()

    def spread(self, each: Tensor) -> list[float]:
        """The standard deviation of the members' scores for each sample."""
        return _std(each).tolist()


def _std(each: Tensor) -> Tensor:
    return (each - each.mean(0)).square().mean(0).sqrt()  # of no samples too
