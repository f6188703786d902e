"""The methods without a value model, on `online`'s iteration. Each is its advantage, and nothing else.

    Rloo         A = R - mean of the prompt's other samples               R = score - kl_coef * KL of the completion
    Grpo         A = (score - group mean) / group deviation               the KL is a part of the loss
    ReinforcePp  A_t = (reward still to come - mean) / deviation          over all tokens of the iteration and all ranks

Every token of a completion has the same advantage in the first two. Losses are means over tokens, so no completion weighs more
because it is short.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from rlhf.losses import group_relative, leave_one_out, rewards_to_go
from rlhf.recipe.online_sections import GrpoSection
from rlhf.train.policy_gradient import PolicyGradient
from rlhf.train.rollout import Experience, Rollout, whiten_all


class Grouped(PolicyGradient):
    """The samples of one prompt are each other's baseline; a microbatch holds them all."""

    @abstractmethod
    def advantage(self, totals: Tensor, groups: Tensor) -> Tensor:
        """Of each completion, [M]. totals: the reward of each, [M]; groups: its prompt, [M]."""

    def estimate(self, rollouts: Sequence[Rollout]) -> list[Experience]:
        experiences = []
        for rollout in rollouts:
            batch = rollout.batch
            own = self.advantage(batch.sum_rows(self.token_rewards(rollout)), batch.segments)
            advantages = own[batch.rows]
            experiences.append(Experience(**vars(rollout), advantages=advantages, returns=advantages))
        return experiences


class Rloo(Grouped):
    """REINFORCE leave-one-out."""

    def advantage(self, totals: Tensor, groups: Tensor) -> Tensor:
        return leave_one_out(totals, groups)


class Grpo(Grouped):
    """Group relative policy optimisation."""

    section: GrpoSection

    def advantage(self, totals: Tensor, groups: Tensor) -> Tensor:
        return group_relative(totals, groups, scale=self.section.scale_rewards)


class ReinforcePp(PolicyGradient):
    """REINFORCE++: the whole iteration is the baseline, so one sample of a prompt is enough."""

    def estimate(self, rollouts: Sequence[Rollout]) -> list[Experience]:
        returns = [rewards_to_go(self.token_rewards(r), r.batch.rows) for r in rollouts]
        whitened = whiten_all(returns, self.ranks.sum)
        return [
            Experience(**vars(rollout), advantages=own, returns=to_go)
            for rollout, own, to_go in zip(rollouts, whitened, returns, strict=True)
        ]
