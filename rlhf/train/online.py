"""What the methods that sample share: rollouts, scores, the KL to the reference, and the iteration up to its updates.

for each iteration:
    1 sample    n completions of each prompt from the policy
    2 score     reward models and callables; the missing-EOS rule
    3 evaluate  log-probabilities of policy and reference at the sampling temperature, and values where there is a value model
    4 estimate  what the method learns from them: an advantage for every token, or pairs
    5 update    for each epoch, each minibatch: the method's loss
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.generation.engine import Completion
from rlhf.generation.ensemble import Ensemble
from rlhf.generation.reward_scorer import RewardScorer, Sample, check_template
from rlhf.generation.scorers import Scorer, load_scorers, mean_of, total_scores
from rlhf.losses import (
    LossOutput,
    missing_eos_scores,
)
from rlhf.models.actor_critic import ActorCritic
from rlhf.models.policy import Reference
from rlhf.recipe.online import OnlineRecipe
from rlhf.recipe.online_sections import OnlineSection
from rlhf.tokens.store import Prompt
from rlhf.train.engine_gap import engine_gap
from rlhf.train.loop import Microbatch, Update
from rlhf.train.ranks import Ranks
from rlhf.train.rollout import Rollout, evaluate
from rlhf.train.setup import Setup

E = TypeVar("E", bound=Rollout)  # a rollout with what the method's step 4 makes of it
Groups = Sequence[Sequence[Completion]]  # the completions of each prompt
EVALUATION_SEED = 2**31 - 1  # held-out samples are drawn with the same noise every time


class Online(ABC, Generic[E]):
    """Prompts in, a policy out. A subclass says what an iteration's samples teach (`estimate`), and by which loss."""

    def __init__(self, recipe: OnlineRecipe, setup: Setup) -> None:
        self.section: OnlineSection = recipe.online
        self.method, self.seed = recipe.method, recipe.seed
        self.accelerator, self.ranks = setup.accelerator, Ranks(setup.accelerator)
        for reward in self.section.rewards:
            check_template(reward, recipe.data.template)
        self.model = self.policy = setup.policy()
        self.reference = Reference(self.policy, setup.other_policy(self.section.reference))
        self.critic = self.make_critic(setup)
        self.module: nn.Module = self.policy if self.critic is None else self.critic
        self.engine = setup.engine(self.policy)
        columns = dict.fromkeys([*getattr(setup.train, "columns", ()), *getattr(setup.held_out, "columns", ())])
        self.scorers = load_scorers(
            self.section.rewards, setup.tokenizer, partial(setup.reward_model, self.policy), columns
        )
        self.prompts: Sequence[Prompt] = setup.train
        self.held_out: Sequence[Prompt] = setup.held_out
        self.batch_size = recipe.prompts_per_microbatch
        self.total_steps = recipe.training.max_steps or int(
            np.ceil(recipe.training.num_train_epochs * len(self.prompts) / self.section.rollout_batch_size)
        )

    def make_critic(self, setup: Setup) -> ActorCritic | None:
        """The policy with a value model, for a method that has one."""
        return None

    @abstractmethod
    def estimate(self, rollouts: Sequence[Rollout]) -> list[E]:
        """Step 4: the iteration's microbatches as step 5 trains on them."""

    @abstractmethod
    def count(self, batch: E) -> float: ...

    @abstractmethod
    def forward_loss(self, module: nn.Module, batch: E, count: Tensor) -> LossOutput: ...

    def updates(self, step: int) -> Iterator[Update[Any]]:
        """One iteration: rollouts first, then each optimizer step's microbatches."""
        prompts = self._prompts_of(step)
        # 1 sample
        groups = self.engine.generate([p.ids for p in prompts], self.section.sampling, seed=self._sampling_seed(step))
        # 2 score
        scores, parts = sample_scores(groups, prompts, self.scorers)
        if step == 0:
            self._ask_about_ends(groups, prompts)
        # 3 evaluate
        kept, final_scores = self.kept(groups, self._final_scores(self.centred(scores), groups))
        rollouts = evaluate(
            prompts,
            kept,
            final_scores,
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
        made = 0
        for epoch in range(self.section.num_ppo_epochs):
            # whole microbatches are shuffled: each keeps its rows, and with them its exact old log-probabilities
            order = np.random.default_rng([self.seed, step, epoch]).permutation(len(experiences))
            for minibatch in np.array_split(order, self.section.num_mini_batches):
                made += 1
                chosen = [Microbatch(e := experiences[i], tokens=e.batch.input_ids.numel()) for i in minibatch]
                yield Update(chosen, metrics | {"updates": made})

    def own_metrics(self, experiences: Sequence[E]) -> dict[str, float]:
        """What the method measures beside what all of them do, over all ranks."""
        return {}

    def centred(self, scores: Tensor) -> Tensor:
        """The scores less what the method takes off every one of them, [M]."""
        return scores

    def kept(self, groups: Groups, scores: Tensor) -> tuple[Groups, Tensor]:
        """The samples that teach, and their scores: all of them, if the method does not choose."""
        return groups, scores

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing beside the parameters."""

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
            "score": self.ranks.mean(scores),
            "length": self.ranks.mean(torch.tensor([float(len(g[0].ids)) for g in groups])),
        }

    def _measure(
        self,
        groups: Groups,
        scores: Tensor,
        parts: dict[str, tuple[float, float]],
        experiences: Sequence[Rollout],
    ) -> dict[str, float]:
        """What the iteration's samples were like, over all ranks."""
        lengths = torch.tensor([float(len(c.ids)) for group in groups for c in group])
        kl = torch.cat([r.batch.sum_rows(r.kl) for r in experiences])
        ranks, n = self.ranks, self.section.sampling.n
        measured = {
            "score": ranks.mean(scores),
            "score_std": ranks.variance(scores) ** 0.5,
            "score_length_corr": ranks.correlation(scores, lengths),
            "kl": ranks.mean(kl),
            "kl_error": ranks.standard_error(kl),
            "entropy": ranks.mean(torch.cat([-r.old_logprobs for r in experiences])),
            "length": ranks.mean(lengths),
            "eos_rate": ranks.mean(torch.tensor([float(c.ended) for g in groups for c in g])),
        }
        if n > 1:
            alike = [float((part == part[0]).all()) for part in scores.split(n)]
            measured["groups_alike"] = ranks.mean(torch.tensor(alike))
        means = {f"score/{name}": ranks.weighted_mean(*part) for name, part in parts.items()}
        return measured | {name: mean for name, mean in means.items() if mean is not None}

    def _engine_gap(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """How far an engine's log-probabilities are from the policy's; nothing where the policy itself samples."""
        section = self.section.rollouts
        return {} if section is None else engine_gap(rollouts, section, f"{self.method}.rollouts", self.ranks)

    def _ask_about_ends(self, groups: Groups, prompts: Sequence[Prompt]) -> None:
        """Say so where a reward model goes by the end of a text more than by the text."""
        if not self.accelerator.is_main_process:
            return
        samples = samples_of(groups, prompts)
        for scorer in self.scorers:
            members = scorer.score.members if isinstance(scorer.score, Ensemble) else [scorer.score]
            for member in members:
                if isinstance(member, RewardScorer) and abs(effect := member.effect_of_end(samples)) > 1.0:
                    said = member.about_ends(scorer.name, effect, self.section.missing_eos)
                    self.accelerator.print(f"warning: {said}")

    def _prompts_of(self, step: int) -> list[Prompt]:
        """This rank's prompts of one iteration: the next of an endless stream of permutations."""
        total, size = len(self.prompts), self.section.rollout_batch_size
        places = range(step * size + self.accelerator.process_index, (step + 1) * size, self.accelerator.num_processes)
        orders = {e: np.random.default_rng([self.seed, e]).permutation(total) for e in {p // total for p in places}}
        return [self.prompts[orders[place // total][place % total]] for place in places]

    def _sampling_seed(self, step: int) -> int:
        """Another for each iteration and rank."""
        return int(np.random.SeedSequence([self.seed, step, self.accelerator.process_index]).generate_state(1)[0])

    def _final_scores(self, scores: Tensor, groups: Groups) -> Tensor:
        """What lands at each completion's last token, [M]: the missing-EOS rule is for those without a stop token."""
        rule = self.section.missing_eos
        if rule is None:
            return scores
        ended = torch.tensor([completion.ended for group in groups for completion in group])
        return missing_eos_scores(scores, ended, mode=rule.mode, value=rule.value)


def sample_scores(
    groups: Groups, prompts: Sequence[Prompt], scorers: Sequence[Scorer]
) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """The total score of every completion in order, [M]; of each scorer the mean, and the share of completions it applies to."""
    total, parts = total_scores(scorers, samples_of(groups, prompts))
    return torch.tensor(total), {name: mean_of(scores) for name, scores in parts.items()}


def samples_of(groups: Groups, prompts: Sequence[Prompt]) -> list[Sample]:
    """Every completion with its prompt, in order."""
    return [Sample(p.text, p.ids, c, p.columns) for p, group in zip(prompts, groups, strict=True) for c in group]
