"""Proximal policy optimisation against a reward: `online`'s iteration with a value model.

for each iteration:
    2 score     centred on what the starting policy writes
    3 evaluate  values too
    4 estimate  r_t = -kl_coef (log pi - log pi_ref)_t, + score at the last token; GAE; whitened advantages
    5 update    clipped policy loss + vf_coef * clipped value loss; the value loss alone while it warms up
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.errors import RecipeError
from rlhf.generation.reward_scorer import same_tokens
from rlhf.losses import LossOutput, gae, value_loss
from rlhf.models.actor_critic import ActorCritic, ValueHead
from rlhf.models.lineage import is_reward_model
from rlhf.models.policy import Policy
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.online import PpoRecipe
from rlhf.recipe.online_sections import PpoSection
from rlhf.train.loop import Microbatch, Update
from rlhf.train.policy_gradient import PolicyGradient
from rlhf.train.ptx import GivenRows
from rlhf.train.rollout import Experience, Rollout, whiten_all
from rlhf.train.setup import Setup


class Ppo(PolicyGradient):
    """With a value model, so that every token has an advantage of its own."""

    section: PpoSection

    def __init__(self, recipe: PpoRecipe, setup: Setup) -> None:
        super().__init__(recipe, setup)
        self.reward_offset: float | None = None if self.section.center_rewards else 0.0
        self.warms_up = False

    def make_critic(self, setup: Setup) -> ActorCritic:
        return ActorCritic(self.policy, _value_model(self.section, setup, self.policy))

    def centred(self, scores: Tensor) -> Tensor:
        if self.reward_offset is None:  # the policy is still the reference: centre on what it writes
            self.reward_offset = self.ranks.mean(scores)
        return scores - self.reward_offset

    def estimate(self, rollouts: Sequence[Rollout]) -> list[Experience]:
        """GAE over each completion, and whitening over all rollouts of all ranks."""
        rewards = [self.token_rewards(r) for r in rollouts]
        if self.section.whiten_rewards:
            rewards = whiten_all(rewards, self.ranks.sum, shift_mean=False)
        experiences = []
        for rollout, own in zip(rollouts, rewards, strict=True):
            advantages, returns = self._gae(rollout, own, self.section.lam)
            if self.section.lam_value is not None:
                _, returns = self._gae(rollout, own, self.section.lam_value)
            experiences.append(Experience(**vars(rollout), advantages=advantages, returns=returns))
        if not self.section.whiten_advantages:
            return experiences
        whitened = whiten_all([e.advantages for e in experiences], self.ranks.sum)
        return [replace(e, advantages=own) for e, own in zip(experiences, whitened, strict=True)]

    def _gae(self, rollout: Rollout, rewards: Tensor, lam: float) -> tuple[Tensor, Tensor]:
        """Advantages and returns of each token, [N] each."""
        batch = rollout.batch
        rows = (batch.to_rows(rewards), batch.to_rows(rollout.old_values), batch.mask)
        advantages, returns = gae(*rows, gamma=self.section.gamma, lam=lam)
        return advantages[batch.mask], returns[batch.mask]

    def updates(self, step: int) -> Iterator[Update[Experience | GivenRows]]:
        self.warms_up = step < self.section.value_warmup_steps
        yield from super().updates(step)

    def given(self, update: int) -> list[Microbatch[GivenRows]]:
        return [] if self.warms_up else super().given(update)

    def loss_of_samples(self, module: nn.Module, batch: Experience, count: Tensor) -> LossOutput:
        logprobs, values = module(batch.batch, temperature=self.section.sampling.temperature)
        policy = self.policy_part(logprobs, batch, count)
        value = value_loss(
            values=values,
            old_values=batch.old_values,
            returns=batch.returns,
            cliprange_value=self.section.cliprange_value,
            num_tokens=count,
        )
        # times 0 while the value warms up: every parameter keeps a gradient, which several processes wait for
        loss = (0.0 * policy.loss if self.warms_up else policy.loss) + self.section.vf_coef * value.loss
        return LossOutput(loss, policy.metrics | {"loss": loss.detach()} | value.metrics)

    def own_metrics(self, experiences: Sequence[Experience]) -> dict[str, float]:
        returns = torch.cat([e.returns for e in experiences])
        errors = returns - torch.cat([e.old_values for e in experiences])
        variance = self.ranks.mean((returns - self.ranks.mean(returns)) ** 2)
        return super().own_metrics(experiences) | {
            "value/explained_variance": 1.0 - self.ranks.mean(errors**2) / max(variance, 1e-8)
        }

    def state(self) -> dict[str, Any]:
        return super().state() | {"reward_offset": self.reward_offset}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.reward_offset = state["reward_offset"]


def _value_model(section: PpoSection, setup: Setup, policy: Policy) -> ScalarModel | ValueHead:
    """The value model as it starts. Where it starts as a reward model, it speaks of that model's share of the reward."""
    if section.value == "shared":
        return ValueHead(policy)
    source = _value_source(section, setup)
    model = setup.value_model(policy, source)
    if source is not None and is_reward_model(source):
        reward = next((r for r in section.rewards if source in r.reward_models), None)
        weight = 1.0 if reward is None else reward.weight
        scale = model.scale if reward is None or reward.normalize else None
        mean, std = (0.0, 1.0) if scale is None else (scale.mean, scale.std)
        model.rescale(weight / std, -weight * mean / std)
    return model


def _value_source(section: PpoSection, setup: Setup) -> str | None:
    """Where the value model starts: as told, else as the first reward model that reads the policy's tokens, else its base."""
    if section.value_model is not None:
        if not same_tokens(section.value_model, setup.tokenizer):
            raise RecipeError(f"ppo.value_model: {section.value_model} has another tokenizer than the policy")
        return section.value_model
    models = (name for reward in section.rewards for name in reward.reward_models)
    return next((name for name in models if same_tokens(name, setup.tokenizer)), None)
