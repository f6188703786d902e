"""What the methods with a policy gradient share: the clipped loss, the KL penalty, and when an iteration has moved enough.

5 update    for each epoch, each minibatch: the clipped policy loss, and what the method adds, until target_kl; PPO-ptx
6 control   kl_coef follows the measured KL, where it is adaptive
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.losses import (
    AdaptiveKl,
    FixedKl,
    KlController,
    LossOutput,
    kl_estimate,
    kl_loss,
    policy_loss,
    token_rewards,
    truncated_weights,
)
from rlhf.losses.output import share_of_mean
from rlhf.recipe.online import OnlineRecipe
from rlhf.recipe.online_sections import PolicyGradientSection
from rlhf.train.loop import Microbatch, Update
from rlhf.train.online import Online
from rlhf.train.ptx import GivenRows, Ptx
from rlhf.train.rollout import Experience, Rollout
from rlhf.train.setup import Setup


class PolicyGradient(Online[Experience]):
    """A subclass says what an advantage is (`estimate`)."""

    section: PolicyGradientSection

    def __init__(self, recipe: OnlineRecipe, setup: Setup) -> None:
        super().__init__(recipe, setup)
        self.kl = self._controller()
        self.first = True  # whether the update that is being made is the iteration's first
        self.moved = torch.zeros((), device=self.accelerator.device)  # its policy/approx_kl
        self.ptx = None if self.section.ptx is None else Ptx(self.section.ptx, recipe, setup, self.ranks)

    def updates(self, step: int) -> Iterator[Update[Experience | GivenRows]]:
        kl = 0.0
        each = self.section.num_ppo_epochs * self.section.num_mini_batches
        for update in super().updates(step):
            self.first, kl = update.metrics["updates"] == 1, update.metrics["kl"]
            self.moved = torch.zeros_like(self.moved)
            given: Sequence[Microbatch[Any]] = self.given(step * each + int(update.metrics["updates"]) - 1)
            # first, because the last microbatch must reach every parameter: several processes share their gradients there
            yield Update([*given, *update.microbatches], update.metrics)
            if self._moved_enough():
                break
        # 6 control
        self.kl.update(kl, self.section.rollout_batch_size * self.section.sampling.n)

    def given(self, update: int) -> list[Microbatch[GivenRows]]:
        """The rows of `ptx` that this optimizer step trains on beside its samples, numbered from the start of the run."""
        return [] if self.ptx is None else self.ptx.microbatches(update)

    def own_metrics(self, experiences: Sequence[Experience]) -> dict[str, float]:
        penalised = torch.cat([r.scores - self.kl.value * r.batch.sum_rows(r.kl) for r in experiences])
        return {"kl_coef": self.kl.value, "objective": self.ranks.mean(penalised)}

    def count(self, batch: Experience | GivenRows) -> float:
        return 0.0 if isinstance(batch, GivenRows) else batch.batch.num_targets

    def forward_loss(self, module: nn.Module, batch: Experience | GivenRows, count: Tensor) -> LossOutput:
        if isinstance(batch, GivenRows):
            assert self.ptx is not None
            return self.ptx.loss(module, self.module, batch)
        return self.loss_of_samples(module, batch, count)

    def loss_of_samples(self, module: nn.Module, batch: Experience, count: Tensor) -> LossOutput:
        """The policy's loss. A method with more to train adds to it."""
        return self.policy_part(module(batch.batch, temperature=self.section.sampling.temperature), batch, count)

    def policy_part(self, logprobs: Tensor, batch: Experience, count: Tensor) -> LossOutput:
        """The clipped loss, and the KL where it is a part of the loss."""
        section = self.section
        policy = policy_loss(
            logprobs=logprobs,
            old_logprobs=batch.old_logprobs,
            advantages=batch.advantages,
            cliprange=section.cliprange,
            cliprange_high=section.cliprange_high,
            num_tokens=count,
            weights=self._weights(batch),
        )
        self.moved += policy.metrics["policy/approx_kl"]
        if self.first:  # nothing was learnt from these samples yet, so this is 0
            gap = share_of_mean((logprobs - batch.old_logprobs).detach().expm1().abs(), count)
            policy = replace(policy, metrics=policy.metrics | {"policy/first_gap": gap})
        if section.kl_in == "reward":
            return LossOutput(policy.loss, {"loss": policy.loss.detach()} | policy.metrics)
        kl = kl_loss(
            logprobs=logprobs, ref_logprobs=batch.ref_logprobs, estimator=section.kl_estimator, num_tokens=count
        )
        loss = policy.loss + self.kl.value * kl.loss
        return LossOutput(loss, {"loss": loss.detach()} | policy.metrics | kl.metrics)

    def token_rewards(self, rollout: Rollout) -> Tensor:
        """Each token's reward, [N]: the KL penalty where it is a part of the reward, the entropy's bonus, and the score at the end."""
        section = self.section
        kl = kl_estimate(rollout.old_logprobs, rollout.ref_logprobs, section.kl_estimator)
        coefficient = self.kl.value if section.kl_in == "reward" else 0.0
        rewards = token_rewards(rollout.scores, kl, rollout.batch.lengths, kl_coef=coefficient)
        return rewards - section.entropy_coef * rollout.old_logprobs if section.entropy_coef else rewards

    def state(self) -> dict[str, Any]:
        return {"kl_coef": self.kl.value}

    def load_state(self, state: dict[str, Any]) -> None:
        self.kl.value = state["kl_coef"]

    def _weights(self, batch: Experience) -> Tensor | None:
        """Each token's importance weight, [N], where the recipe corrects for the engine that sampled."""
        sampling = self.section.rollouts.importance_sampling if self.section.rollouts is not None else None
        if sampling is None or batch.engine_logprobs is None:
            return None
        return truncated_weights(batch.old_logprobs, batch.engine_logprobs, cap=sampling.cap)

    def _moved_enough(self) -> bool:
        """Whether the policy of the last update was `target_kl` or more from the one that sampled, on all ranks alike."""
        target = self.section.target_kl
        return target is not None and float(self.ranks.sum(self.moved)) >= target

    def _controller(self) -> KlController:
        """What sets kl_coef, with a word on how far it can go in this run."""
        section, adaptive = self.section, self.section.adaptive_kl
        if adaptive is None:
            return FixedKl(section.kl_coef)
        each = section.rollout_batch_size * section.sampling.n
        horizon = adaptive.horizon or max(each, self.total_steps * each // 20)
        most = (1.0 + 0.2 * each / horizon) ** self.total_steps
        said = f"in {self.total_steps * each} episodes kl_coef can grow by a factor of {most:.3g} at most"
        hint = "" if most >= 2 else f"; lower {self.method}.adaptive_kl.horizon, or leave it out"
        self.accelerator.print(f"{self.method}.adaptive_kl, horizon {horizon}: {said}{hint}")
        return AdaptiveKl(section.kl_coef, adaptive.target, horizon)
