"""The sampled KL against exact enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rlhf.evaluate.sampling import sampled_kl
from rlhf.generation.engine import Completion
from rlhf.generation.in_process import InProcessEngine
from rlhf.generation.reward_scorer import Sample
from rlhf.models.policy import Policy
from rlhf.recipe.sections import SamplingSection
from tests.evaluate.conftest import tiny_llama
from tests.tiny import tiny_tokenizer

PROMPT, LENGTH = [0, 1, 1], 3
ALL = [list(ids) for ids in product([0, 1], repeat=LENGTH)]


def two_token_policy(seed: int) -> Policy:
    return Policy(tiny_llama(seed, 2), pad_token_id=0)


def samples(completions: list[list[int]], prompt: list[int] = PROMPT) -> list[list[Sample]]:
    return [[Sample("", prompt, Completion(ids, "", False)) for ids in completions]]


@torch.no_grad()
def exact_logprobs(policy: Policy, temperature: float) -> NDArray[np.float64]:
    """log p of every completion of three tokens, from the plain model's logits."""
    out = []
    for ids in ALL:
        logits = policy.transformer(input_ids=torch.tensor([PROMPT + ids])).logits[0].double() / temperature
        logprobs = logits.log_softmax(-1)[len(PROMPT) - 1 : -1]
        out.append(logprobs.gather(1, torch.tensor(ids)[:, None]).sum().item())
    return np.asarray(out)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_two_tokens_enumerated(temperature: float) -> None:
    policy, reference = two_token_policy(0), two_token_policy(1)
    own, ref = exact_logprobs(policy, temperature), exact_logprobs(reference, temperature)
    assert np.exp(own).sum() == pytest.approx(1.0)
    ratios = sampled_kl(policy, reference, samples(ALL), temperature)
    assert ratios.shape == (1, len(ALL))
    np.testing.assert_allclose(ratios[0], own - ref, atol=1e-5)
    kl = float((np.exp(own) * ratios[0]).sum())
    assert kl > 0.01
    assert ratios.min() < 0 < ratios.max()  # single ones may be negative; their mean under the policy is not


def test_a_model_has_no_distance_from_itself() -> None:
    policy, again = two_token_policy(0), two_token_policy(0)
    assert (sampled_kl(policy, policy, samples(ALL), 1.0) == 0.0).all()
    assert (sampled_kl(policy, again, samples(ALL), 1.0) == 0.0).all()


def test_the_mean_over_drawn_samples_is_the_exact_kl() -> None:
    tokenizer, temperature = tiny_tokenizer(), 0.8
    policy, reference = (Policy(tiny_llama(seed, len(tokenizer)), pad_token_id=0) for seed in (0, 1))
    prompt = tokenizer("The film was").input_ids
    with torch.no_grad():
        own, ref = (
            (p.transformer(input_ids=torch.tensor([prompt])).logits[0, -1].double() / temperature).log_softmax(-1)
            for p in (policy, reference)
        )
    exact = float((own.exp() * (own - ref)).sum())
    sampling = SamplingSection(max_new_tokens=1, n=2000, temperature=temperature)
    (group,) = InProcessEngine(policy, tokenizer).generate([prompt], sampling, seed=0)
    ratios = sampled_kl(policy, reference, [[Sample("", prompt, c) for c in group]], temperature)[0]
    assert exact > 0.1
    assert abs(ratios.mean() - exact) < 4 * ratios.std() / len(ratios) ** 0.5
