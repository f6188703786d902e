"""One draw from logits: which tokens are left to draw from, and which one the noise picks, against plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.generation.choosing import choose_tokens
from rlhf.recipe.sections import SamplingSection
from rlhf.recipe.synthesis import TextSampling

PROBABILITIES = [0.1, 0.4, 0.25, 0.2, 0.05]
LOGITS = torch.tensor(PROBABILITIES).log()


def expected_token(logits: Sequence[float], sampling: TextSampling, noise: float) -> int:
    """The rules one after the other, on one row."""
    if sampling.temperature == 0:
        return max(range(len(logits)), key=lambda i: logits[i])
    scaled = [x / sampling.temperature for x in logits]
    alive = set(range(len(scaled)))
    order = sorted(alive, key=lambda i: -scaled[i])
    if 0 < sampling.top_k < len(scaled):
        alive = set(order[: sampling.top_k])
    share = {i: math.exp(scaled[i]) for i in alive}
    share = {i: x / sum(share.values()) for i, x in share.items()}
    before = 0.0
    for i in (i for i in order if i in alive):
        if before >= sampling.top_p:
            alive.discard(i)
        before += share[i]
    floor = sampling.min_p * max(share.values())
    alive = {i for i in alive if share[i] >= floor}
    left = noise * sum(share[i] for i in alive)
    for i in sorted(alive):
        left -= share[i]
        if left < 0:
            return i
    raise AssertionError("noise is below 1")


settings_drawn = st.builds(
    lambda temperature, k, p, m: TextSampling(temperature=temperature, top_k=k, top_p=p, min_p=m),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.integers(0, 6),
    st.sampled_from([0.3, 0.62, 0.9, 1.0]),
    st.sampled_from([0.0, 0.11, 0.45, 1.0]),
)
rows = st.lists(st.tuples(st.permutations([-1.0, 0.0, 0.7, 1.5, 2.1]), st.floats(0.01, 0.98)), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(settings_drawn, rows)
def test_every_rule_and_all_of_them_together(sampling: TextSampling, drawn: list[tuple[list[float], float]]) -> None:
    """A batch of rows, each with its own noise, gives what each row gives alone by the rules."""
    logits = torch.tensor([row for row, _ in drawn])
    noise = torch.tensor([n for _, n in drawn], dtype=torch.float64)
    ours = choose_tokens(logits, sampling, noise).tolist()
    assert ours == [expected_token(row, sampling, n) for row, n in drawn]


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        (SamplingSection(), [0, 1, 2, 3, 4]),
        (SamplingSection(top_k=1), [1]),
        (SamplingSection(top_k=4), [0, 1, 2, 3]),
        (SamplingSection(top_k=5), [0, 1, 2, 3, 4]),
        (SamplingSection(top_k=6), [0, 1, 2, 3, 4]),
        (SamplingSection(top_p=0.3), [1]),
        (SamplingSection(top_p=0.5), [1, 2]),
        (TextSampling(temperature=1.0, top_p=1.0, min_p=0.2), [0, 1, 2, 3]),  # 0.05 is under a fifth of 0.4, 0.1 is not
        (TextSampling(temperature=1.0, top_p=1.0, min_p=0.6), [1, 2]),
    ],
)
def test_which_tokens_are_left(sampling: SamplingSection, left: list[int]) -> None:
    draws = 2000
    noise = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    chosen = choose_tokens(LOGITS.expand(draws, 5), sampling, noise)
    assert sorted(set(chosen.tolist())) == left


def test_noise_picks_by_the_distribution_function() -> None:
    """The token is the first whose cumulative probability is above the noise: 0.25, 0.75, 1."""
    logits = torch.tensor([0.25, 0.5, 0.25]).log().expand(6, 3)
    noise = torch.tensor([0.0, 0.249, 0.251, 0.749, 0.751, 0.999])
    assert choose_tokens(logits, SamplingSection(), noise).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_token_without_probability_is_never_drawn() -> None:
    """Noise 0 skips tokens at the front whose probability is zero; noise 1 still gives a token of the vocabulary."""
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]])
    assert choose_tokens(logits, SamplingSection(), torch.tensor([0.0])).tolist() == [1]
    assert choose_tokens(torch.zeros(1, 4), SamplingSection(), torch.tensor([1.0])).tolist() == [3]


def test_equal_logits_at_the_edge_of_top_k_all_stay() -> None:
    """As in transformers: a token goes when its logit is below the k-th largest."""
    noise = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    chosen = choose_tokens(torch.tensor([1.0, 0.0, 0.0, -1.0]).expand(300, 4), SamplingSection(top_k=2), noise)
    assert sorted(set(chosen.tolist())) == [0, 1, 2]


def test_half_precision_logits_are_drawn_from_in_full_precision() -> None:
    """A sum of 5,000 equal probabilities in bfloat16 would stop growing early and never reach the last tokens."""
    chosen = choose_tokens(torch.zeros(1, 5000, dtype=torch.bfloat16), SamplingSection(), torch.tensor([0.9]))
    assert abs(chosen.item() - 4500) <= 1


def test_the_softmax_of_half_precision_logits_is_not_rounded() -> None:
    logits = torch.tensor([1.0, 0.25, -0.5, 0.0], dtype=torch.bfloat16).expand(5000, 4)
    noise = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    assert torch.equal(
        choose_tokens(logits, SamplingSection(), noise), choose_tokens(logits.float(), SamplingSection(), noise)
    )


def test_top_p_stops_when_it_is_just_reached() -> None:
    noise = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    chosen = choose_tokens(torch.zeros(100, 4), SamplingSection(top_p=0.5), noise)
    assert len(set(chosen.tolist())) == 2  # a quarter each


def test_very_rare_tokens_can_be_told_apart() -> None:
    """Two tokens of one in a billion: single precision could not say which of them the noise means."""
    logits = torch.tensor([[1.0, 1e-9, 1e-9]]).log()
    assert choose_tokens(logits, SamplingSection(), torch.tensor([1 - 1.5e-9], dtype=torch.float64)).tolist() == [1]
