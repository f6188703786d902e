"""What the methods that sample share: rollouts, scores, the KL to the reference, and the iteration.

for each iteration:
    1 sample    n completions of each prompt from the policy
    2 score     reward models and callables; the missing-EOS rule
    3 evaluate  log-probabilities of policy and reference at the sampling temperature, and values where there is a value model
    4 estimate  an advantage for every token: the method's own
    5 update    for each epoch, each minibatch: the clipped policy loss, and what the method adds
    6 control   kl_coef follows the measured KL, where it is adaptive
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.generation.engine import Completion
from rlhf.generation.reward_scorer import RewardScorer, Sample, check_template
from rlhf.generation.scorers import Scorer, load_scorers, total_scores
from rlhf.losses import (
    AdaptiveKl,
    FixedKl,
    KlController,
    LossOutput,
    kl_estimate,
    kl_loss,
    missing_eos_scores,
    policy_loss,
    token_rewards,
    truncated_weights,
)
from rlhf.models.actor_critic import ActorCritic
from rlhf.models.policy import Reference
from rlhf.recipe.online import OnlineRecipe, OnlineSection
from rlhf.tokens.store import Prompt
from rlhf.train.engine_gap import engine_gap
from rlhf.train.loop import Microbatch, Update
from rlhf.train.rollout import Experience, Rollout, evaluate
from rlhf.train.setup import Setup

EVALUATION_SEED = 2**31 - 1  # held-out samples are drawn with the same noise every time


class Online(ABC):
    """Prompts in, a policy out. A subclass says what an advantage is (`estimate`)."""

    def __init__(self, recipe: OnlineRecipe, setup: Setup) -> None:
        self.section: OnlineSection = recipe.online
        self.method, self.seed = recipe.method, recipe.seed
        self.accelerator = setup.accelerator
        for reward in self.section.rewards:
            check_template(reward, recipe.data.template)
        self.model = self.policy = setup.policy()
        self.reference = Reference(self.policy, setup.other_policy(self.section.reference))
        self.critic = self.make_critic(setup)
        self.module: nn.Module = self.policy if self.critic is None else self.critic
        self.engine = setup.engine(self.policy)
        self.scorers = load_scorers(self.section.rewards, setup.tokenizer, partial(setup.reward_model, self.policy))
        self.prompts: Sequence[Prompt] = setup.train
        self.held_out: Sequence[Prompt] = setup.held_out
        self.batch_size = recipe.prompts_per_microbatch
        self.total_steps = recipe.training.max_steps or int(
            np.ceil(recipe.training.num_train_epochs * len(self.prompts) / self.section.rollout_batch_size)
        )
        self.kl = self._controller()

    def make_critic(self, setup: Setup) -> ActorCritic | None:
        """The policy with a value model, for a method that has one."""
        return None

    @abstractmethod
    def estimate(self, rollouts: Sequence[Rollout]) -> list[Experience]:
        """Step 4: an advantage for every token of the iteration."""

    def updates(self, step: int) -> Iterator[Update[Experience]]:
        """One iteration: rollouts first, then each optimizer step's microbatches."""
        prompts = self._prompts_of(step)
        # 1 sample
        groups = self.engine.generate([p.ids for p in prompts], self.section.sampling, seed=self._sampling_seed(step))
        # 2 score
        scores, parts = sample_scores(groups, prompts, self.scorers)
        if step == 0:
            self._ask_about_ends(groups, prompts)
        # 3 evaluate
        rollouts = evaluate(
            prompts,
            groups,
            self._final_scores(self.centred(scores), groups),
            policy=self.policy,
            critic=self.critic,
            reference=self.reference,
            temperature=self.section.sampling.temperature,
            batch_size=self.batch_size,
        )
        gap = self._engine_gap(rollouts)
        # 4 estimate
        experiences = self.estimate(rollouts)
        metrics = self._measure(groups, scores, parts, experiences) | self.own_metrics(experiences) | gap
        # 5 update
        for epoch in range(self.section.num_ppo_epochs):
            # whole microbatches are shuffled: each keeps its rows, and with them its exact old log-probabilities
            order = np.random.default_rng([self.seed, step, epoch]).permutation(len(experiences))
            for minibatch in np.array_split(order, self.section.num_mini_batches):
                chosen = [experiences[i] for i in minibatch]
                yield Update([Microbatch(e, tokens=e.batch.input_ids.numel()) for e in chosen], metrics)
        # 6 control
        self.kl.update(metrics["kl"], self.section.rollout_batch_size * self.section.sampling.n)

    def own_metrics(self, experiences: Sequence[Experience]) -> dict[str, float]:
        """What the method measures beside what all of them do, over all ranks."""
        return {}

    def centred(self, scores: Tensor) -> Tensor:
        """The scores less what the method takes off every one of them, [M]."""
        return scores

    def count(self, batch: Experience) -> float:
        return batch.batch.num_targets

    def forward_loss(self, module: nn.Module, batch: Experience, count: Tensor) -> LossOutput:
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
        if section.kl_in == "reward":
            return LossOutput(policy.loss, {"loss": policy.loss.detach()} | policy.metrics)
        kl = kl_loss(
            logprobs=logprobs, ref_logprobs=batch.ref_logprobs, estimator=section.kl_estimator, num_tokens=count
        )
        loss = policy.loss + self.kl.value * kl.loss
        return LossOutput(loss, {"loss": loss.detach()} | policy.metrics | kl.metrics)

    def token_rewards(self, rollout: Rollout) -> Tensor:
        """Each token's reward, [N]: the KL penalty where it is a part of the reward, and the score at the last token."""
        section = self.section
        kl = kl_estimate(rollout.old_logprobs, rollout.ref_logprobs, section.kl_estimator)
        coefficient = self.kl.value if section.kl_in == "reward" else 0.0
        return token_rewards(rollout.scores, kl, rollout.batch.lengths, kl_coef=coefficient)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """The mean score of one completion for each held-out prompt, drawn with the same noise every time."""
        if not self.held_out:
            return {}
        mine = self.held_out[self.accelerator.process_index :: self.accelerator.num_processes]
        sampling = self.section.sampling.model_copy(update={"n": 1})
        seed = EVALUATION_SEED + self.accelerator.process_index
        groups = self.engine.generate([prompt.ids for prompt in mine], sampling, seed=seed)
        scores, _ = sample_scores(groups, mine, self.scorers)
        return {
            "score": self.mean_over_ranks(scores),
            "length": self.mean_over_ranks(torch.tensor([float(len(g[0].ids)) for g in groups])),
        }

    def state(self) -> dict[str, Any]:
        return {"kl_coef": self.kl.value}

    def load_state(self, state: dict[str, Any]) -> None:
        self.kl.value = state["kl_coef"]

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of a tensor of each rank, the same on all."""
        total: Tensor = self.accelerator.reduce(values.to(self.accelerator.device), "sum")
        return total

    def mean_over_ranks(self, values: Tensor) -> float:
        """The mean of the values of all ranks."""
        total, count = self.sum_over_ranks(torch.tensor([float(values.sum()), float(values.numel())]))
        return float(total) / float(count)

    def _measure(
        self,
        groups: Sequence[Sequence[Completion]],
        scores: Tensor,
        parts: dict[str, float],
        experiences: Sequence[Experience],
    ) -> dict[str, float]:
        """What the iteration's samples were like, over all ranks."""
        kl = torch.cat([r.batch.sum_rows(r.kl) for r in experiences])
        return {
            "score": self.mean_over_ranks(scores),
            "kl": self.mean_over_ranks(kl),
            "kl_coef": self.kl.value,
            "objective": self.mean_over_ranks(torch.cat([r.scores for r in experiences]) - self.kl.value * kl),
            "entropy": self.mean_over_ranks(torch.cat([-r.old_logprobs for r in experiences])),
            "length": self.mean_over_ranks(torch.cat([r.batch.lengths.float() for r in experiences])),
            "eos_rate": self.mean_over_ranks(torch.tensor([float(c.ended) for g in groups for c in g])),
        } | {f"score/{name}": self.mean_over_ranks(torch.tensor([mean])) for name, mean in parts.items()}

    def _engine_gap(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """How far an engine's log-probabilities are from the policy's; nothing where the policy itself samples."""
        rollouts_section = self.section.rollouts
        if rollouts_section is None:
            return {}
        return engine_gap(rollouts, rollouts_section, f"{self.method}.rollouts", self.accelerator)

    def _weights(self, batch: Experience) -> Tensor | None:
        """Each token's importance weight, [N], where the recipe corrects for the engine."""
        rollouts_section = self.section.rollouts
        if rollouts_section is None or rollouts_section.importance_sampling is None or batch.engine_logprobs is None:
            return None
        return truncated_weights(
            batch.old_logprobs, batch.engine_logprobs, cap=rollouts_section.importance_sampling.cap
        )

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

    def _ask_about_ends(self, groups: Sequence[Sequence[Completion]], prompts: Sequence[Prompt]) -> None:
        """Say so where a reward model goes by the end of a text more than by the text."""
        if not self.accelerator.is_main_process:
            return
        samples = samples_of(groups, prompts)
        for scorer in self.scorers:
            if isinstance(scorer.score, RewardScorer) and abs(effect := scorer.score.effect_of_end(samples)) > 1.0:
                self.accelerator.print(
                    f"warning: {scorer.score.about_ends(scorer.name, effect, self.section.missing_eos)}"
                )

    def _prompts_of(self, step: int) -> list[Prompt]:
        """This rank's prompts of one iteration: the next of an endless stream of permutations."""
        total, size = len(self.prompts), self.section.rollout_batch_size
        places = range(step * size + self.accelerator.process_index, (step + 1) * size, self.accelerator.num_processes)
        orders = {e: np.random.default_rng([self.seed, e]).permutation(total) for e in {p // total for p in places}}
        return [self.prompts[orders[place // total][place % total]] for place in places]

    def _sampling_seed(self, step: int) -> int:
        """Another for each iteration and rank."""
        return int(np.random.SeedSequence([self.seed, step, self.accelerator.process_index]).generate_state(1)[0])

    def _final_scores(self, scores: Tensor, groups: Sequence[Sequence[Completion]]) -> Tensor:
        """What lands at each completion's last token, [M]: the missing-EOS rule is for those without a stop token."""
        rule = self.section.missing_eos
        if rule is None:
            return scores
        ended = torch.tensor([completion.ended for group in groups for completion in group])
        return missing_eos_scores(scores, ended, mode=rule.mode, value=rule.value)


def sample_scores(
    groups: Sequence[Sequence[Completion]], prompts: Sequence[Prompt], scorers: Sequence[Scorer]
) -> tuple[Tensor, dict[str, float]]:
    """The total score of every completion in order, [M], and the mean of each scorer."""
    total, parts = total_scores(scorers, samples_of(groups, prompts))
    return torch.tensor(total), {name: sum(values) / max(len(values), 1) for name, values in parts.items()}


def samples_of(groups: Sequence[Sequence[Completion]], prompts: Sequence[Prompt]) -> list[Sample]:
    """Every completion with its prompt, in order."""
    return [Sample(p.text, p.ids, c) for p, group in zip(prompts, groups, strict=True) for c in group]
