"""One PPO iteration's experience: completions sampled from the policy, scored, and turned into advantages.

Everything the update needs is computed by the same forward passes over the same microbatches as the update itself, so
before the first optimizer step every probability ratio is exactly one. (Log-probabilities kept from sampling would
differ from them in bf16, and put ratios outside the clip range before anything was learnt.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.generation.engine import Completion
from rlhf.generation.scorers import Sample, Scorer, total_scores
from rlhf.losses import gae, kl_estimate, masked_moments, missing_eos_scores, token_rewards, whiten
from rlhf.models.policy import Policy, Reference
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.schema import PpoSection
from rlhf.tokens.segments import Segment, SegmentBatch, collate


@dataclass(frozen=True)
class Prompt:
    """What a rollout starts from."""

    text: str
    ids: Sequence[int]


@dataclass(frozen=True)
class Experience:
    """One microbatch of rollouts: M completions of at most C tokens. Old: before this iteration's first update."""

    batch: SegmentBatch
    old_logprobs: Tensor  # [M, C]
    ref_logprobs: Tensor  # [M, C]
    old_values: Tensor  # [M, C]
    scores: Tensor  # [M]: after centring and the missing-EOS rule; what lands at the last token
    advantages: Tensor  # [M, C]
    returns: Tensor  # [M, C]

    @property
    def kl(self) -> Tensor:
        """Per token, [M, C]."""
        return kl_estimate(self.old_logprobs, self.ref_logprobs)


def sample_scores(
    groups: Sequence[Sequence[Completion]], prompts: Sequence[Prompt], scorers: Sequence[Scorer]
) -> tuple[Tensor, dict[str, float]]:
    """The total score of every completion in order, [M], and the mean of each scorer."""
    samples = [Sample(p.text, p.ids, c) for p, group in zip(prompts, groups, strict=True) for c in group]
    total, parts = total_scores(scorers, samples)
    return torch.tensor(total), {name: sum(values) / max(len(values), 1) for name, values in parts.items()}


@torch.no_grad()
def experience(
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Completion]],
    scores: Tensor,
    *,
    section: PpoSection,
    policy: Policy,
    reference: Reference,
    value_model: ScalarModel,
    kl_coef: float,
    batch_size: int,
    reduce: Callable[[Tensor], Tensor],
) -> list[Experience]:
    """`batch_size` prompts a microbatch. scores: [M], one a completion in order. `reduce` sums a tensor over all ranks."""
    device = policy.transformer.device
    ended = torch.tensor([c.ended for group in groups for c in group])
    if section.missing_eos is not None:
        scores = missing_eos_scores(scores, ended, mode=section.missing_eos.mode, value=section.missing_eos.value)
    scores = scores.to(device)
    temperature = section.sampling.temperature
    microbatches, first = [], 0
    for i in range(0, len(prompts), batch_size):
        pairs = zip(prompts[i : i + batch_size], groups[i : i + batch_size], strict=True)
        batch = collate([Segment(p.ids, [c.ids for c in group]) for p, group in pairs]).to(device)
        mine = slice(first, first + batch.num_completions)
        first = mine.stop
        old = batch.to_rows(policy(batch, temperature=temperature))
        ref = batch.to_rows(reference(batch, temperature=temperature))
        values = batch.to_rows(value_model(batch, per_token=True))
        microbatches.append((batch, old, ref, values, scores[mine]))

    kl_penalised = [
        token_rewards(own, kl_estimate(old, ref), batch.mask, kl_coef=kl_coef)
        for batch, old, ref, _, own in microbatches
    ]
    masks = [batch.mask for batch, *_ in microbatches]
    if section.whiten_rewards:
        kl_penalised = whiten_all(kl_penalised, masks, reduce, shift_mean=False)
    estimates = [
        gae(rewards, values, mask, gamma=section.gamma, lam=section.lam)
        for rewards, (_, _, _, values, _), mask in zip(kl_penalised, microbatches, masks, strict=True)
    ]
    advantages = [advantage for advantage, _ in estimates]
    if section.whiten_advantages:
        advantages = whiten_all(advantages, masks, reduce)
    return [
        Experience(batch, old, ref, values, own, advantage, returns)
        for (batch, old, ref, values, own), advantage, (_, returns) in zip(
            microbatches, advantages, estimates, strict=True
        )
    ]


def whiten_all(
    rows: Sequence[Tensor], masks: Sequence[Tensor], reduce: Callable[[Tensor], Tensor], *, shift_mean: bool = True
) -> list[Tensor]:
    """Whiten microbatches together, by the moments over all of them and all ranks; [M, C] each."""
    flat = torch.cat([row[mask] for row, mask in zip(rows, masks, strict=True)])
    mean, variance = masked_moments(flat, torch.ones_like(flat, dtype=torch.bool), reduce=reduce)
    return [
        whiten(row, mask, mean=mean, variance=variance, shift_mean=shift_mean)
        for row, mask in zip(rows, masks, strict=True)
    ]
