"""The KL estimate against exact divergences, and the controllers of its coefficient."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.losses import AdaptiveKl, FixedKl, kl_estimate
from tests.losses import oracle
from tests.losses.support import Numbers, assert_close, check, masks, numbers, tensor


@check
@given(numbers, masks())
def test_k1_is_the_log_ratio(draw: Numbers, mask: np.ndarray) -> None:
    logprobs, ref = draw(*mask.shape), draw(*mask.shape)
    assert_close(kl_estimate(tensor(logprobs), tensor(ref)), oracle.k1(logprobs, ref))


def _softmax(logits: np.ndarray) -> list[float]:
    weights = [math.exp(x) for x in logits]
    return [w / math.fsum(weights) for w in weights]


@check
@given(numbers, st.integers(2, 6))
def test_the_mean_of_k1_is_the_kl(draw: Numbers, size: int) -> None:
    """Over every outcome of a categorical, weighted by the policy: exact, not sampled."""
    p, q = _softmax(draw(size)), _softmax(draw(size))
    estimates = kl_estimate(tensor(np.log(p)), tensor(np.log(q)))
    mean = math.fsum(pi * k for pi, k in zip(p, estimates.tolist(), strict=True))
    assert_close(mean, oracle.categorical_kl(p, q))
    assert mean >= -1e-15


@check
@given(numbers)
def test_the_sum_of_k1_over_tokens_is_the_sequences_kl(draw: Numbers) -> None:
    """Two tokens, the second's distribution hanging on the first: all nine sequences, the chain rule of the KL."""
    first_p, first_q = _softmax(draw(3)), _softmax(draw(3))
    second_p, second_q = [_softmax(draw(3)) for _ in range(3)], [_softmax(draw(3)) for _ in range(3)]
    pairs = list(itertools.product(range(3), range(3)))
    logprobs = np.log([[first_p[i], second_p[i][j]] for i, j in pairs])
    ref = np.log([[first_q[i], second_q[i][j]] for i, j in pairs])
    per_sequence = kl_estimate(tensor(logprobs), tensor(ref)).sum(1).tolist()
    mean = math.fsum(first_p[i] * second_p[i][j] * k for (i, j), k in zip(pairs, per_sequence, strict=True))
    joint_p = [first_p[i] * second_p[i][j] for i, j in pairs]
    joint_q = [first_q[i] * second_q[i][j] for i, j in pairs]
    assert_close(mean, oracle.categorical_kl(joint_p, joint_q))


def test_k1_may_be_negative_at_a_token() -> None:
    # the policy likes the token less than the reference: ln 0.25 - ln 0.5 = -ln 2
    estimate = kl_estimate(torch.tensor(0.25, dtype=torch.float64).log(), torch.tensor(0.5, dtype=torch.float64).log())
    assert estimate.item() == pytest.approx(-math.log(2), abs=1e-15)


@given(st.floats(allow_nan=True), st.integers(0, 10**6))
def test_the_fixed_coefficient_never_moves(kl: float, episodes: int) -> None:
    controller = FixedKl(0.05)
    controller.update(kl, episodes)
    assert controller.value == 0.05


kls = st.lists(st.floats(-5, 50), min_size=1, max_size=10)


@check
@given(st.floats(0.01, 1.0), kls, st.floats(0.5, 20), st.integers(100, 20_000), st.integers(1, 1024))
def test_the_adaptive_coefficient(
    start: float, measured: list[float], target: float, horizon: int, episodes: int
) -> None:
    controller = AdaptiveKl(start, target, horizon)
    values = []
    for kl in measured:
        controller.update(kl, episodes)
        values.append(controller.value)
    assert_close(values, oracle.adaptive_kl(start, measured, target, horizon, episodes))


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.2),  # on target: nothing moves
        (6.6, 0.200512),  # error 0.1: 0.2 (1 + 0.1 x 256 / 10,000) = 0.2 x 1.00256
        (5.4, 0.199488),  # error -0.1: 0.2 x 0.99744
        (7.2, 0.201024),  # error 0.2, the bound: 0.2 (1 + 0.2 x 0.0256) = 0.2 x 1.00512
        (60.0, 0.201024),  # error 9, clipped to 0.2
        (4.8, 0.198976),  # error -0.2, the bound: 0.2 x 0.99488
        (0.0, 0.198976),  # error -1, clipped to -0.2
        (-3.0, 0.198976),  # a negative estimate: clipped too, the coefficient stays positive
    ],
)
def test_the_adaptive_coefficient_by_hand(kl: float, expected: float) -> None:
    controller = AdaptiveKl(0.2, 6.0, 10_000)
    controller.update(kl, 256)
    assert controller.value == pytest.approx(expected, abs=1e-15)
