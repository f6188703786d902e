"""Rewards per token, advantages, and whitening."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.losses import gae, moments, token_rewards, whiten
from tests.losses import oracle
from tests.losses.support import Numbers, assert_close, check, completion_masks, masks, numbers, smooth_numbers, tensor

discounts = st.sampled_from([0.0, 0.3, 0.95, 0.99, 1.0])


def _gae(rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    return gae(tensor(rewards), tensor(values), tensor(mask), gamma=gamma, lam=lam)


# Rewards


lengths_of = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(np.array)


@check
@given(numbers, lengths_of, st.sampled_from([0.0, 0.05, 1.0]))
def test_token_rewards(draw: Numbers, lengths: np.ndarray, kl_coef: float) -> None:
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    scores, kl = draw(len(lengths), scale=3), draw(*mask.shape)
    rewards = token_rewards(tensor(scores), tensor(kl[mask]), torch.tensor(lengths), kl_coef=kl_coef)
    assert_close(rewards, oracle.token_rewards(scores, kl, mask, kl_coef)[mask])


@check
@given(numbers, lengths_of)
def test_the_score_lands_on_the_last_token_only(draw: Numbers, lengths: np.ndarray) -> None:
    kl = tensor(draw(int(lengths.sum())))
    without, scored = (
        token_rewards(tensor(np.full(len(lengths), s)), kl, torch.tensor(lengths), kl_coef=0.1) for s in (0.0, 1.0)
    )
    expected = np.concatenate([[0.0] * (n - 1) + [1.0] for n in lengths])
    assert_close(scored - without, expected)


def test_token_rewards_by_hand() -> None:
    kl = torch.tensor([0.5, 0.1, 0.2, 0.3], dtype=torch.float64)
    # one token: 2 - 0.1 x 0.5 = 1.95; three tokens: -0.01, -0.02, and 3 - 0.03 = 2.97
    rewards = token_rewards(torch.tensor([2.0, 3.0]), kl, torch.tensor([1, 3]), kl_coef=0.1)
    np.testing.assert_allclose(rewards, [1.95, -0.01, -0.02, 2.97], rtol=0, atol=1e-15)


# Advantages


@check
@given(numbers, completion_masks(), discounts, discounts)
def test_gae_is_its_definition(draw: Numbers, mask: np.ndarray, gamma: float, lam: float) -> None:
    rewards, values = draw(*mask.shape), draw(*mask.shape)
    advantages, returns = _gae(rewards, values, mask, gamma, lam)
    assert_close(advantages, oracle.advantages(rewards, values, mask, gamma, lam))
    assert_close(returns, oracle.lambda_returns(rewards, values, mask, gamma, lam))
    assert_close(returns, np.where(mask, advantages.numpy() + values, 0.0))


@check
@given(numbers, completion_masks(), discounts)
def test_lambda_one_is_monte_carlo(draw: Numbers, mask: np.ndarray, gamma: float) -> None:
    rewards, values = draw(*mask.shape), draw(*mask.shape)
    expected = oracle.discounted_returns(rewards, mask, gamma)
    advantages, returns = _gae(rewards, values, mask, gamma, 1.0)
    assert_close(advantages, np.where(mask, expected - values, 0.0))
    assert_close(returns, expected)


@check
@given(numbers, completion_masks(), discounts)
def test_lambda_zero_is_the_one_step_error(draw: Numbers, mask: np.ndarray, gamma: float) -> None:
    rewards, values = draw(*mask.shape), draw(*mask.shape)
    expected = np.zeros(mask.shape)
    for m, t in zip(*np.nonzero(mask), strict=True):
        final = t + 1 == mask.shape[1] or not mask[m, t + 1]
        expected[m, t] = rewards[m, t] + (0.0 if final else gamma * values[m, t + 1]) - values[m, t]
    assert_close(_gae(rewards, values, mask, gamma, 0.0)[0], expected)


@check
@given(numbers, completion_masks(), discounts)
def test_gamma_zero_sees_one_reward(draw: Numbers, mask: np.ndarray, lam: float) -> None:
    rewards, values = draw(*mask.shape), draw(*mask.shape)
    advantages, returns = _gae(rewards, values, mask, 0.0, lam)
    assert_close(advantages, np.where(mask, rewards - values, 0.0))
    assert_close(returns, np.where(mask, rewards, 0.0))


@check
@given(numbers, completion_masks(), discounts, discounts, st.floats(-5, 5))
def test_a_constant_added_to_every_value(
    draw: Numbers, mask: np.ndarray, gamma: float, lam: float, shift: float
) -> None:
    """GAE is linear: a constant c moves each delta by (gamma - 1) c, the last by -c, since the episode ends at zero."""
    rewards, values = draw(*mask.shape), draw(*mask.shape)
    here, there = _gae(rewards, values, mask, gamma, lam)[0], _gae(rewards, values + shift, mask, gamma, lam)[0]
    expected = np.zeros(mask.shape)
    for m, t in zip(*np.nonzero(mask), strict=True):
        left = int(mask[m, t + 1 :].sum())
        decay = gamma * lam
        expected[m, t] = -shift * (decay**left + (1 - gamma) * sum(decay**i for i in range(left)))
    assert_close(there - here, expected)


def test_undiscounted_constant_values_move_every_advantage_alike() -> None:
    """gamma = lambda = 1: the deltas telescope, and a constant c lowers every advantage by exactly c."""
    mask = np.array([[True, True, True, False], [True, False, False, False]])
    rewards = np.array([[0.0, 0.0, 1.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
    advantages, _ = _gae(rewards, np.full(mask.shape, 0.25), mask, 1.0, 1.0)
    assert advantages.tolist() == [[0.75, 0.75, 0.75, 0.0], [1.75, 0.0, 0.0, 0.0]]


def test_an_exact_value_function_leaves_no_advantage() -> None:
    rewards, mask = np.array([[1.0, 2.0, 4.0]]), np.ones((1, 3), dtype=bool)
    advantages, returns = _gae(rewards, np.array([[7.0, 6.0, 4.0]]), mask, 1.0, 0.7)
    assert advantages.tolist() == [[0.0, 0.0, 0.0]]
    assert returns.tolist() == [[7.0, 6.0, 4.0]]


def test_gae_by_hand() -> None:
    # rewards 0.5, -0.25, 1; values 0.2, 0.4, -0.1; gamma 0.9, lambda 0.8, gamma lambda 0.72
    # delta_2 =  1    + 0          + 0.1 =  1.1       A_2 =  1.1
    # delta_1 = -0.25 + 0.9 x -0.1 - 0.4 = -0.74      A_1 = -0.74 + 0.72 x 1.1   = 0.052
    # delta_0 =  0.5  + 0.9 x  0.4 - 0.2 =  0.66      A_0 =  0.66 + 0.72 x 0.052 = 0.69744
    rewards, values = np.array([[0.5, -0.25, 1.0, 9.0]]), np.array([[0.2, 0.4, -0.1, 9.0]])
    advantages, returns = _gae(rewards, values, np.array([[True, True, True, False]]), 0.9, 0.8)
    np.testing.assert_allclose(advantages, [[0.69744, 0.052, 1.1, 0.0]], rtol=0, atol=1e-15)
    np.testing.assert_allclose(returns, [[0.89744, 0.452, 1.0, 0.0]], rtol=0, atol=1e-15)


# Whitening


@check
@given(numbers, masks(), st.sampled_from([0.0, 3.0, -1000.0]), st.booleans())
def test_moments_and_whitening(draw: Numbers, mask: np.ndarray, offset: float, shift_mean: bool) -> None:
    values = draw(*mask.shape, scale=2, offset=offset)
    mean, variance = moments(tensor(values[mask]))
    expected_mean, expected_variance = oracle.moments(values, mask)
    assert_close(mean, expected_mean)
    assert_close(variance, expected_variance)
    if expected_variance > 1e-6:  # else rounding is all that is left to scale
        whitened = whiten(tensor(values[mask]), mean=mean, variance=variance, shift_mean=shift_mean)
        assert_close(whitened, oracle.whiten(values, mask, expected_mean, expected_variance, shift_mean)[mask])


@check
@given(smooth_numbers, completion_masks(), st.sampled_from([0.0, 5.0]))
def test_whitened_numbers_have_mean_zero_and_variance_one(draw: Numbers, mask: np.ndarray, offset: float) -> None:
    count = max(3, int(mask.sum()))
    values, mask = tensor(draw(count, scale=2, offset=offset)), np.ones(count, dtype=bool)
    mean, variance = moments(values)
    whitened = whiten(values, mean=mean, variance=variance)
    kept = whiten(values, mean=mean, variance=variance, shift_mean=False)
    ones = float(variance / (variance + 1e-8))  # what the 1e-8 in the root leaves of a variance of one
    assert_close(np.array(oracle.moments(whitened.numpy(), mask)), np.array([0.0, ones]))
    assert_close(np.array(oracle.moments(kept.numpy(), mask)), np.array([float(mean), ones]))


def test_whitening_by_hand() -> None:
    # 1, 2, 6: mean 3, unbiased variance (4 + 1 + 9) / 2 = 7; (1 - 3) / sqrt(7) = -0.75592894...
    values = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    mean, variance = moments(values)
    assert (mean.item(), variance.item()) == (3.0, 7.0)
    whitened = whiten(values, mean=mean, variance=variance)
    expected = [-0.7559289460184544, -0.3779644730092272, 1.1338934190276817]
    np.testing.assert_allclose(whitened, expected, rtol=1e-8)
    kept = whiten(values, mean=mean, variance=variance, shift_mean=False)
    np.testing.assert_allclose(kept, [2.2440710539815456, 2.6220355269907728, 4.133893419027682], rtol=1e-8)


def test_equal_values_whiten_to_zero() -> None:
    values = torch.full((6,), 0.7, dtype=torch.float64)
    mean, variance = moments(values)
    assert whiten(values, mean=mean, variance=variance).abs().max().item() < 1e-6


def test_moments_do_not_cancel() -> None:
    """1e8 + {0, 1, 2} has variance 1: a mean of squares minus a square of the mean would lose it."""
    values = torch.tensor([1e8, 1e8 + 1, 1e8 + 2], dtype=torch.float64)
    mean, variance = moments(values)
    assert (mean.item(), variance.item()) == (1e8 + 1, 1.0)


@pytest.mark.parametrize("count", [0, 1])
def test_moments_of_next_to_nothing(count: int) -> None:
    values = torch.tensor([4.0][:count])
    mean, variance = moments(values)
    assert (mean.item(), variance.item()) == (4.0 * count, 0.0)
    assert whiten(values, mean=mean, variance=variance).tolist() == [0.0] * count


def _over_shards(shards: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """`moments` on each rank, their sums exchanged as all-reduce would: one more collective known each round."""
    sums: list[Tensor] = []
    while True:
        sent: list[list[Tensor]] = []
        results = []
        for values in shards:
            mine: list[Tensor] = []

            def reduce(total: Tensor, mine: list[Tensor] = mine) -> Tensor:
                mine.append(total.clone())
                return sums[len(mine) - 1].clone() if len(mine) <= len(sums) else total

            results.append(moments(values, reduce=reduce))
            sent.append(mine)
        assert len({len(mine) for mine in sent}) == 1, "every rank must take part in every collective"
        if len(sums) == len(sent[0]):
            return results
        sums.append(torch.stack([mine[len(sums)] for mine in sent]).sum(0))


@check
@given(numbers, masks(), st.integers(0, 5), st.sampled_from([0.0, 100.0]))
def test_moments_over_two_shards_are_the_whole(draw: Numbers, mask: np.ndarray, cut: int, offset: float) -> None:
    """One of the two may hold nothing; both end with the global moments."""
    values = draw(*mask.shape, offset=offset)
    flat = tensor(values[mask])
    shards = [flat[:cut], flat[cut:]]
    expected = oracle.moments(values, mask)
    for mean, variance in _over_shards(shards):
        assert_close(mean, expected[0])
        assert_close(variance, expected[1])
