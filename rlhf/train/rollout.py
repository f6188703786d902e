"""One iteration's samples, from the moment they are drawn until each of their tokens has an advantage.

Everything that the update needs is computed by the update's own forward passes over the update's own microbatches. Before
the first optimizer step every probability ratio is therefore exactly one. (Log-probabilities kept from sampling would
differ from them in bf16, and would put ratios outside the clip range before anything was learnt.)

Per-token tensors are flat, [N]: the tokens of all completions, one completion after the other (`SegmentBatch.rows` says
which token belongs to which). Padding exists inside `gae` alone, which walks back over columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf.generation.engine import Completion
from rlhf.losses import kl_estimate, moments, whiten
from rlhf.models.actor_critic import ActorCritic
from rlhf.models.policy import Policy, Reference
from rlhf.tokens.segments import Segment, SegmentBatch, collate
from rlhf.tokens.store import Prompt

Reduce = Callable[[Tensor], Tensor]  # sums a tensor over all ranks


@dataclass(frozen=True)
class Rollout:
    """One microbatch of samples: M completions of N tokens together. All of it is from before the iteration's first update.

    Step 1 (sample) fills `batch`, step 2 (score) `scores`, step 3 (evaluate) the rest.
    """

    batch: SegmentBatch
    scores: Tensor  # [M]: after centring and the missing-EOS rule; what lands at the last token
    old_logprobs: Tensor  # [N]: of the policy that sampled
    ref_logprobs: Tensor  # [N]: of the reference
    old_values: Tensor  # [N]: the value model before each token; 0 for a method without one
    engine_logprobs: Tensor | None = field(
        default=None, kw_only=True
    )  # [N]: of an engine that is not the module itself

    @property
    def kl(self) -> Tensor:
        """The estimate of the KL to the reference per token, [N]."""
        return kl_estimate(self.old_logprobs, self.ref_logprobs)


@dataclass(frozen=True)
class Experience(Rollout):
    """A rollout with what step 4 (estimate) makes of it: the batch that step 5 (update) trains on."""

    advantages: Tensor  # [N]: whitened over the iteration where the recipe says so
    returns: Tensor  # [N]: what the value model should have said


@torch.no_grad()
def evaluate(
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Completion]],
    scores: Tensor,
    *,
    policy: Policy,
    critic: ActorCritic | None,
    reference: Reference,
    temperature: float,
    batch_size: int,
) -> list[Rollout]:
    """`batch_size` prompts a microbatch, through all models. `scores`: one a completion, in order, [M]. `critic`: policy and value
    model together, for a method that has one.
    """
    device = policy.transformer.device
    rollouts, first = [], 0
    for i in range(0, len(prompts), batch_size):
        pairs = zip(prompts[i : i + batch_size], groups[i : i + batch_size], strict=True)
        batch = collate([Segment(p.ids, [c.ids for c in group]) for p, group in pairs]).to(device)
        mine = slice(first, first + batch.num_completions)
        first = mine.stop
        if critic is not None:
            logprobs, values = critic(batch, temperature=temperature)
        else:
            logprobs = policy(batch, temperature=temperature)
            values = torch.zeros_like(logprobs)
        rollouts.append(
            Rollout(
                batch=batch,
                scores=scores[mine].to(device),
                old_logprobs=logprobs,
                ref_logprobs=reference(batch, temperature=temperature),
                old_values=values,
                engine_logprobs=_engine_logprobs(groups[i : i + batch_size], device),
            )
        )
    return rollouts


def _engine_logprobs(groups: Sequence[Sequence[Completion]], device: torch.device) -> Tensor | None:
    """What the engine said of each token when it drew it, [N]; None from the module that trains."""
    given = [completion.logprobs for group in groups for completion in group]
    said = [logprob for logprobs in given if logprobs is not None for logprob in logprobs]
    return torch.tensor(said, dtype=torch.float32, device=device) if said else None


def whiten_all(values: Sequence[Tensor], reduce: Reduce, *, shift_mean: bool = True) -> list[Tensor]:
    """Whiten microbatches together, by the moments over all of them and all ranks; [N] each."""
    mean, variance = moments(torch.cat(list(values)), reduce=reduce)
    return [whiten(own, mean=mean, variance=variance, shift_mean=shift_mean) for own in values]
