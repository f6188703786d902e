"""The reward model's loss against its oracle: single pairs, and all pairs of whole rankings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rlhf.losses import (
    LossOutput,
    ranked_pairs,
    reward_loss,
)
from tests.losses import oracle
from tests.losses.support import (
    Numbers,
    assert_adds_up,
    assert_close,
    assert_gradient,
    assert_output,
    check,
    counts,
    numbers,
    partition,
    seeds,
    tensor,
)


@st.composite
def reward_options(draw: st.DrawFn) -> tuple[bool, bool, float]:
    return draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from([0.0, 0.01, 0.5]))


@check
@given(numbers, counts, reward_options(), st.integers(0, 5))
def test_reward(draw: Numbers, count: int, options: tuple[bool, bool, float], elsewhere: int) -> None:
    weighted, with_margin, center = options
    chosen, rejected = draw(count, scale=2), draw(count, scale=2)
    weights = np.abs(draw(count)) if weighted else None
    margins = draw(count) if with_margin else None
    x, y = tensor(chosen, grad=True), tensor(rejected, grad=True)
    output = reward_loss(
        chosen_scores=x,
        rejected_scores=y,
        num_pairs=count + elsewhere,
        weights=None if weights is None else tensor(weights),
        margins=None if margins is None else tensor(margins),
        center_coefficient=center,
    )
    rest = (count + elsewhere, weights, margins, center)
    assert_output(output, oracle.reward_pairs(chosen, rejected, *rest))
    assert_gradient(output.loss, x, lambda at: oracle.reward_pairs(at, rejected, *rest)["loss"])
    assert_gradient(output.loss, y, lambda at: oracle.reward_pairs(chosen, at, *rest)["loss"])


def _reward(chosen: object, rejected: object, center: float = 0.0) -> LossOutput:
    x, y = tensor(chosen), tensor(rejected)
    return reward_loss(chosen_scores=x, rejected_scores=y, num_pairs=len(x), center_coefficient=center)


@check
@given(numbers, counts, st.floats(-50, 50))
def test_reward_is_shift_invariant_until_it_is_centred(draw: Numbers, count: int, shift: float) -> None:
    assume(abs(shift) > 1e-3)
    chosen, rejected = draw(count), draw(count)
    here, there = _reward(chosen, rejected), _reward(chosen + shift, rejected + shift)
    assert_close(there.loss, here.loss.numpy())
    assert_close(there.metrics["margin"], here.metrics["margin"].numpy())
    # (s + 2k)^2 - s^2 = 4k (s + k): the centring term is all that moves
    moved = _reward(chosen + shift, rejected + shift, 0.1).loss - _reward(chosen, rejected, 0.1).loss
    assert_close(moved, 0.1 * np.mean(4 * shift * (chosen + rejected + shift)))


def test_reward_does_not_overflow() -> None:
    x = torch.tensor([-1000.0, 1000.0], dtype=torch.float64, requires_grad=True)
    output = reward_loss(chosen_scores=x, rejected_scores=-x, num_pairs=1)
    output.loss.backward()
    assert output.loss.item() == 2000.0
    assert x.grad.tolist() == [-2.0, 0.0]  # of -log sigmoid(2 x): -2 sigmoid(-2 x)


def test_reward_by_hand() -> None:
    # scores 1.0 against 0.5 with a margin of 0.25: -log sigmoid(0.25) = ln(1 + e^-0.25) = 0.5759394198788435
    # centring 0.01 (1.0 + 0.5)^2 = 0.0225; the second pair: 0.0 against 1.0, no margin: ln(1 + e) = 1.3132616875182228
    # and 0.01; mean (0.5984394198788435 + 1.3232616875182228) / 2 = 0.9608505536985332
    output = reward_loss(
        chosen_scores=torch.tensor([1.0, 0.0], dtype=torch.float64),
        rejected_scores=torch.tensor([0.5, 1.0], dtype=torch.float64),
        num_pairs=2,
        margins=torch.tensor([0.25, 0.0], dtype=torch.float64),
        center_coefficient=0.01,
    )
    assert output.loss.item() == pytest.approx(0.9608505536985332, abs=1e-15)
    assert output.metrics["accuracy"].item() == 0.5
    assert output.metrics["margin"].item() == -0.25  # (0.5 - 1.0) / 2, of the scores alone
    assert output.metrics["score/chosen"].item() == 0.5
    assert output.metrics["score/rejected"].item() == 0.75


def test_reward_ties_are_not_accurate() -> None:
    assert _reward([1.0, 2.0], [1.0, 1.0]).metrics["accuracy"].item() == 0.5


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    """Grades of each prompt's completions, full of ties, and the order in which all the completions are laid out."""
    ranking = st.lists(st.sampled_from([0.0, 1.0, 2.0, 2.5]), min_size=1, max_size=5)
    grades = draw(st.lists(ranking, min_size=1, max_size=4))
    order = draw(st.permutations(range(sum(map(len, grades)))))
    return grades, order


def _lay_out(grades: list[list[float]], order: list[int]) -> tuple[np.ndarray, np.ndarray]:
    flat = np.concatenate([np.array(prompt) for prompt in grades])
    owner = np.concatenate([np.full(len(prompt), 3 * i) for i, prompt in enumerate(grades)])  # ids need not be dense
    return flat[order], owner[order]


@check
@given(rankings())
def test_ranked_pairs_are_every_pair_but_the_ties(drawn: tuple[list[list[float]], list[int]]) -> None:
    grades, segments = _lay_out(*drawn)
    pairs = ranked_pairs(torch.tensor(grades), torch.tensor(segments))
    expected = {}
    for segment in set(segments.tolist()):
        members = np.flatnonzero(segments == segment).tolist()
        found = oracle.compared([grades[i] for i in members])
        expected |= {(members[i], members[j]): np.float32(1 / len(found)) for i, j in found}
    ours = list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True))
    assert len(ours) == len(set(ours))
    assert dict(zip(ours, pairs.weights.numpy(), strict=True)) == expected
    assert pairs.weights.dtype == torch.float32


def _ranked(scores: np.ndarray, grades: np.ndarray, segments: np.ndarray, num_rankings: float) -> LossOutput:
    pairs = ranked_pairs(torch.tensor(grades), torch.tensor(segments))
    x = tensor(scores)
    return reward_loss(
        chosen_scores=x[pairs.chosen],
        rejected_scores=x[pairs.rejected],
        num_pairs=num_rankings,
        weights=1.0 / (1.0 / pairs.weights.double()).round(),  # float32 of 1 / n: undo its rounding
    )


@check
@given(numbers, rankings())
def test_a_prompt_is_one_vote(draw: Numbers, drawn: tuple[list[list[float]], list[int]]) -> None:
    grades, segments = _lay_out(*drawn)
    scores = draw(len(grades), scale=2)
    prompts = [(scores[segments == s], grades[segments == s]) for s in sorted(set(segments.tolist()))]
    voting = [prompt for prompt in prompts if oracle.compared(prompt[1])]
    assume(voting)
    weights = ranked_pairs(torch.tensor(grades), torch.tensor(segments)).weights
    assert weights.sum().item() == pytest.approx(len(voting), rel=1e-6)
    assert_output(_ranked(scores, grades, segments, len(voting)), oracle.reward_rankings(prompts))


@check
@given(numbers, counts)
def test_rankings_of_two_are_pairs(draw: Numbers, count: int) -> None:
    chosen, rejected = draw(count), draw(count)
    scores = np.stack([chosen, rejected], 1).ravel()
    grades, segments = np.tile([1.0, 0.0], count), np.repeat(np.arange(count), 2)
    ranked, pairwise = _ranked(scores, grades, segments, count), _reward(chosen, rejected)
    assert torch.equal(ranked.loss, pairwise.loss)
    assert all(torch.equal(ranked.metrics[name], value) for name, value in pairwise.metrics.items())


def test_ranking_by_hand() -> None:
    # grades 2, 1, 1, 0: five pairs of six (one tie), each worth 1/5. Scores 0, 0, 0, 0: each -log sigmoid(0) = ln 2.
    grades, segments = np.array([2.0, 1.0, 1.0, 0.0]), np.zeros(4, dtype=np.int64)
    pairs = ranked_pairs(torch.tensor(grades), torch.tensor(segments))
    assert pairs.chosen.tolist() == [0, 0, 0, 1, 2]
    assert pairs.rejected.tolist() == [1, 2, 3, 3, 3]
    assert pairs.weights.tolist() == [np.float32(0.2)] * 5
    assert _ranked(np.zeros(4), grades, segments, 1).loss.item() == pytest.approx(math.log(2), abs=1e-15)


def test_a_ranking_of_ties_compares_nothing() -> None:
    pairs = ranked_pairs(torch.tensor([1.0, 1.0, 1.0, 5.0]), torch.tensor([0, 0, 0, 1]))
    assert pairs.chosen.numel() == pairs.rejected.numel() == pairs.weights.numel() == 0


@check
@given(numbers, rankings(), seeds)
def test_rankings_add_up_over_microbatches(
    draw: Numbers, drawn: tuple[list[list[float]], list[int]], seed: int
) -> None:
    """Whole prompts are dealt to microbatches; the normaliser is the number of prompts that compare anything."""
    grades, segments = _lay_out(*drawn)
    scores, prompts = draw(len(grades)), np.unique(segments)
    voting = sum(bool(oracle.compared(grades[segments == s])) for s in prompts)
    assume(voting)

    def share(chosen: np.ndarray) -> LossOutput:
        rows = np.isin(segments, prompts[chosen])
        return _ranked(scores[rows], grades[rows], segments[rows], voting)

    assert_adds_up(share, np.arange(len(prompts)), partition(len(prompts), seed))


def test_gradcheck() -> None:
    """PyTorch's own finite differences."""
    draw = Numbers(5, None)
    chosen, rejected = (tensor(draw(4), grad=True) for _ in range(2))
    margins = tensor(draw(4))
    assert torch.autograd.gradcheck(
        lambda x, y: reward_loss(chosen_scores=x, rejected_scores=y, num_pairs=4, margins=margins).loss,
        (chosen, rejected),
    )
