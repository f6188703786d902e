"""Proximal policy optimisation against a reward, on one loop with the other stages.

for each iteration:
    1 sample    n completions of each prompt from the policy
    2 score     reward models and callables; centred; the missing-EOS rule
    3 evaluate  log-probabilities of policy and reference, values, at the sampling temperature
    4 estimate  r_t = -kl_coef (log pi - log pi_ref)_t, + score at the last token; GAE; whitened advantages
    5 update    for each epoch, each minibatch: clipped policy loss + vf_coef * clipped value loss
    6 control   kl_coef follows the measured KL, where it is adaptive
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.errors import RecipeError
from rlhf.generation.engine import Completion
from rlhf.generation.reward_scorer import RewardScorer, Sample, check_template, same_tokens
from rlhf.generation.scorers import Scorer, load_scorers, total_scores
from rlhf.losses import AdaptiveKl, FixedKl, KlController, LossOutput, missing_eos_scores, policy_loss, value_loss
from rlhf.models.actor_critic import ActorCritic, ValueHead
from rlhf.models.lineage import is_reward_model
from rlhf.models.policy import Policy, Reference
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.training import PpoRecipe, PpoSection
from rlhf.tokens.store import Prompt
from rlhf.train.loop import Microbatch, Update
from rlhf.train.rollout import Experience, estimate, evaluate
from rlhf.train.setup import Setup

EVALUATION_SEED = 2**31 - 1  # held-out samples are drawn with the same noise every time


class Ppo:
    """Prompts in, a policy out."""

    def __init__(self, recipe: PpoRecipe, setup: Setup) -> None:
        self.section, self.seed = recipe.ppo, recipe.seed
        self.accelerator = setup.accelerator
        self.model = self.policy = setup.policy()
        self.reference = Reference(self.policy, setup.other_policy(recipe.ppo.reference))
        for reward in recipe.ppo.rewards:
            check_template(reward, recipe.data.template)
        self.module = ActorCritic(self.policy, _value_model(recipe.ppo, setup, self.policy))
        self.engine = setup.engine(self.policy)
        self.scorers = load_scorers(
            recipe.ppo.rewards,
            setup.tokenizer,
            partial(setup.reward_model, self.policy),
        )
        self.reward_offset: float | None = None if self.section.center_rewards else 0.0
        self.prompts: Sequence[Prompt] = setup.train
        self.held_out: Sequence[Prompt] = setup.held_out
        self.batch_size = recipe.prompts_per_microbatch
        self.total_steps = recipe.training.max_steps or int(
            np.ceil(recipe.training.num_train_epochs * len(self.prompts) / self.section.rollout_batch_size)
        )
        self.kl = self._controller()

    def updates(self, step: int) -> Iterator[Update[Experience]]:
        """One iteration: rollouts first, then each optimizer step's microbatches."""
        prompts = self._prompts_of(step)
        # 1 sample
        groups = self.engine.generate([p.ids for p in prompts], self.section.sampling, seed=self._sampling_seed(step))
        # 2 score
        scores, parts = sample_scores(groups, prompts, self.scorers)
        if step == 0:
            self._ask_about_ends(groups, prompts)
        if self.reward_offset is None:  # the policy is still the reference: centre on what it writes
            self.reward_offset = self._mean(scores)
        # 3 evaluate
        rollouts = evaluate(
            prompts,
            groups,
            self._final_scores(scores, groups),
            actor_critic=self.module,
            reference=self.reference,
            temperature=self.section.sampling.temperature,
            batch_size=self.batch_size,
        )
        # 4 estimate
        experiences = estimate(rollouts, self.section, kl_coef=self.kl.value, reduce=self._sum)
        metrics = self._measure(groups, scores, parts, experiences)
        # 5 update
        for epoch in range(self.section.num_ppo_epochs):
            # whole microbatches are shuffled: each keeps its rows, and with them its exact old log-probabilities
            order = np.random.default_rng([self.seed, step, epoch]).permutation(len(experiences))
            for minibatch in np.array_split(order, self.section.num_mini_batches):
                chosen = [experiences[i] for i in minibatch]
                yield Update([Microbatch(e, tokens=e.batch.input_ids.numel()) for e in chosen], metrics)
        # 6 control
        self.kl.update(metrics["kl"], self.section.rollout_batch_size * self.section.sampling.n)

    def count(self, batch: Experience) -> float:
        return batch.batch.num_targets

    def forward_loss(self, module: nn.Module, batch: Experience, count: Tensor) -> LossOutput:
        logprobs, values = module(batch.batch, temperature=self.section.sampling.temperature)
        policy = policy_loss(
            logprobs=logprobs,
            old_logprobs=batch.old_logprobs,
            advantages=batch.advantages,
            cliprange=self.section.cliprange,
            num_tokens=count,
        )
        value = value_loss(
            values=values,
            old_values=batch.old_values,
            returns=batch.returns,
            cliprange_value=self.section.cliprange_value,
            num_tokens=count,
        )
        loss = policy.loss + self.section.vf_coef * value.loss
        return LossOutput(loss, {"loss": loss.detach()} | policy.metrics | value.metrics)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """The mean score of one completion for each held-out prompt, drawn with the same noise every time."""
        if not self.held_out:
            return {}
        mine = self.held_out[self.accelerator.process_index :: self.accelerator.num_processes]
        sampling = self.section.sampling.model_copy(update={"n": 1})
        seed = EVALUATION_SEED + self.accelerator.process_index
        groups = self.engine.generate([prompt.ids for prompt in mine], sampling, seed=seed)
        scores, _ = sample_scores(groups, mine, self.scorers)
        return {"score": self._mean(scores), "length": self._mean(torch.tensor([float(len(g[0].ids)) for g in groups]))}

    def state(self) -> dict[str, Any]:
        return {"kl_coef": self.kl.value, "reward_offset": self.reward_offset}

    def load_state(self, state: dict[str, Any]) -> None:
        self.kl.value, self.reward_offset = state["kl_coef"], state["reward_offset"]

    def _controller(self) -> KlController:
        """What sets kl_coef, with a word on how far it can go in this run."""
        section, adaptive = self.section, self.section.adaptive_kl
        if adaptive is None:
            return FixedKl(section.kl_coef)
        each = section.rollout_batch_size * section.sampling.n
        horizon = adaptive.horizon or max(each, self.total_steps * each // 20)
        most = (1.0 + 0.2 * each / horizon) ** self.total_steps
        said = f"in {self.total_steps * each} episodes kl_coef can grow by a factor of {most:.3g} at most"
        hint = "" if most >= 2 else "; lower ppo.adaptive_kl.horizon, or leave it out"
        self.accelerator.print(f"ppo.adaptive_kl, horizon {horizon}: {said}{hint}")
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
        """What lands at each completion's last token, [M]: the centred score, and the missing-EOS rule."""
        centred, rule = scores - (self.reward_offset or 0.0), self.section.missing_eos
        if rule is None:
            return centred
        ended = torch.tensor([completion.ended for group in groups for completion in group])
        return missing_eos_scores(centred, ended, mode=rule.mode, value=rule.value)

    def _measure(
        self,
        groups: Sequence[Sequence[Completion]],
        scores: Tensor,
        parts: dict[str, float],
        experiences: Sequence[Experience],
    ) -> dict[str, float]:
        """What the iteration's samples were like, over all ranks."""
        kl = torch.cat([r.batch.sum_rows(r.kl) for r in experiences])
        returns = torch.cat([e.returns for e in experiences])
        errors = returns - torch.cat([r.old_values for r in experiences])
        return {
            "score": self._mean(scores),
            "kl": self._mean(kl),
            "kl_coef": self.kl.value,
            "objective": self._mean(torch.cat([r.scores for r in experiences]) - self.kl.value * kl),
            "entropy": self._mean(torch.cat([-r.old_logprobs for r in experiences])),
            "length": self._mean(torch.cat([r.batch.lengths.float() for r in experiences])),
            "eos_rate": self._mean(torch.tensor([float(c.ended) for g in groups for c in g])),
            "value/explained_variance": 1.0 - self._mean(errors**2) / max(self._variance(returns), 1e-8),
        } | {f"score/{name}": self._mean(torch.tensor([mean])) for name, mean in parts.items()}

    def _sum(self, values: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(values.to(self.accelerator.device), "sum")
        return total

    def _mean(self, values: Tensor) -> float:
        """Over all ranks."""
        total, count = self._sum(torch.tensor([float(values.sum()), float(values.numel())]))
        return float(total) / float(count)

    def _variance(self, values: Tensor) -> float:
        return self._mean((values - self._mean(values)) ** 2)


def sample_scores(
    groups: Sequence[Sequence[Completion]], prompts: Sequence[Prompt], scorers: Sequence[Scorer]
) -> tuple[Tensor, dict[str, float]]:
    """The total score of every completion in order, [M], and the mean of each scorer."""
    total, parts = total_scores(scorers, samples_of(groups, prompts))
    return torch.tensor(total), {name: sum(values) / max(len(values), 1) for name, values in parts.items()}


def samples_of(groups: Sequence[Sequence[Completion]], prompts: Sequence[Prompt]) -> list[Sample]:
    """Every completion with its prompt, in order."""
    return [Sample(p.text, p.ids, c) for p, group in zip(prompts, groups, strict=True) for c in group]


def _value_model(section: PpoSection, setup: Setup, policy: Policy) -> ScalarModel | ValueHead:
    """The value model as it starts. Where it starts as a reward model, it speaks of that model's share of the reward."""
    if section.value == "shared":
        return ValueHead(policy)
    source = _value_source(section, setup)
    model = setup.value_model(policy, source)
    if source is not None and is_reward_model(source):
        reward = next((r for r in section.rewards if r.model == source), None)
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
    models = [s.model for s in section.rewards if s.model is not None and same_tokens(s.model, setup.tokenizer)]
    return next(iter(models), None)
