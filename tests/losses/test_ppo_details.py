"""PPO's losses: against the oracle, at their corners, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rlhf.losses import missing_eos_scores
from tests.losses import oracle
from tests.losses.support import (
    Numbers,
    assert_close,
    assert_gradient,
    assert_output,
    check,
    masks,
    numbers,
    policy_of,
    smooth_numbers,
    tensor,
    value_of,
)

modes = st.sampled_from(["replace", "penalty"])
clipranges = st.sampled_from([0.05, 0.2, 0.5])


# The policy


@check
@given(numbers, masks(), clipranges, st.integers(1, 30))
def test_policy_loss(draw: Numbers, mask: np.ndarray, cliprange: float, num_tokens: int) -> None:
    logprobs, old, advantages = draw(*mask.shape), draw(*mask.shape, scale=0.7), draw(*mask.shape)
    expected = oracle.policy(logprobs, old, advantages, mask, cliprange, num_tokens)
    x = tensor(logprobs, grad=True)  # so that a metric that still hangs on the graph is seen
    assert_output(policy_of(x, old, advantages, mask, cliprange, num_tokens), expected)
    assert_output(policy_of(x, old, advantages, mask, cliprange, torch.tensor(num_tokens)), expected)


@check
@given(smooth_numbers, masks(), clipranges)
def test_policy_gradient(draw: Numbers, mask: np.ndarray, cliprange: float) -> None:
    old, advantages = -np.abs(draw(*mask.shape)), draw(*mask.shape)
    logprobs = old + draw(*mask.shape, scale=0.4)
    ratio = np.exp(logprobs - old)
    assume((np.abs(np.abs(ratio - 1) - cliprange) > 1e-3).all())  # a kink has no slope
    x, num_tokens = tensor(logprobs, grad=True), 5
    loss = policy_of(x, old, advantages, mask, cliprange, num_tokens).loss
    assert_gradient(loss, x, lambda at: oracle.policy(at, old, advantages, mask, cliprange, num_tokens)["policy/loss"])
    # and in closed form: -A rho / N, or nothing where the clip binds: rho too high to be raised, too low to be lowered
    (gradient,) = torch.autograd.grad(loss, x)
    binds = ((ratio > 1 + cliprange) & (advantages > 0)) | ((ratio < 1 - cliprange) & (advantages < 0))
    assert_close(gradient, np.where(mask & ~binds, -advantages * ratio / num_tokens, 0.0))
    assert not gradient[tensor(~mask | binds)].any()


@check
@given(numbers, masks(), clipranges)
def test_nothing_has_moved(draw: Numbers, mask: np.ndarray, cliprange: float) -> None:
    """logprobs == old_logprobs: ratio 1, nothing clipped, no KL, and the gradient is the plain policy gradient."""
    logprobs, advantages = draw(*mask.shape, offset=-3), draw(*mask.shape)
    x = tensor(logprobs, grad=True)
    output = policy_of(x, logprobs, advantages, mask, cliprange)
    count = int(mask.sum())
    assert output.metrics["policy/ratio"].item() == (1.0 if count else 0.0)
    assert output.metrics["policy/clip_fraction"].item() == 0.0
    assert output.metrics["policy/approx_kl"].item() == 0.0
    assert_close(output.loss, -sum(advantages[mask].tolist()) / max(1, count))
    (gradient,) = torch.autograd.grad(output.loss, x)
    assert_close(gradient, np.where(mask, -advantages / max(1, count), 0.0))


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [
        (1.5, 2.0, 0.0),  # raised beyond 1.2 already: no further
        (0.5, -2.0, 0.0),  # lowered beyond 0.8 already: no further
        (1.5, -2.0, 3.0),  # the wrong way: pulled back with -A rho = 2 x 1.5
        (0.5, 2.0, -1.0),  # the wrong way: pulled back with -2 x 0.5
        (1.1, 2.0, -2.2),  # inside the range: -2 x 1.1
        (0.9, -2.0, 1.8),
    ],
)
def test_the_clip_holds_against_the_advantages_sign(ratio: float, advantage: float, gradient: float) -> None:
    x = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    policy_of(x, np.zeros((1, 1)), np.array([[advantage]]), np.ones((1, 1), dtype=bool)).loss.backward()
    assert x.grad.item() == pytest.approx(gradient, abs=1e-15)


def test_policy_loss_by_hand() -> None:
    # clip 0.2. ratio, advantage: min(rho A, clip(rho) A)
    #   1.5,  2: min( 3.0,  2.4) =  2.4, clipped
    #   0.5,  2: min( 1.0,  1.6) =  1.0
    #   1.5, -2: min(-3.0, -2.4) = -3.0
    #   0.5, -2: min(-1.0, -1.6) = -1.6, clipped
    #   1.0,  3: 3.0
    # sum 1.8, so the loss is -1.8 / 5 = -0.36; clipped 2 of 5; mean ratio 5 / 5 = 1
    # approximate KL: (2 ln(1.5)^2 + 2 ln(0.5)^2) / 2 / 5 = (0.16440195 + 0.48045301) / 5 = 0.1289709933...
    logprobs = np.log([[1.5, 0.5, 1.5], [0.5, 1.0, 7.0]])
    advantages = np.array([[2.0, 2.0, -2.0], [-2.0, 3.0, 9.0]])
    mask = np.array([[True, True, True], [True, True, False]])
    output = policy_of(logprobs, np.zeros((2, 3)), advantages, mask)
    assert output.loss.item() == pytest.approx(-0.36, abs=1e-15)
    assert output.metrics["policy/loss"].item() == pytest.approx(-0.36, abs=1e-15)
    assert output.metrics["policy/clip_fraction"].item() == pytest.approx(0.4, abs=1e-15)
    assert output.metrics["policy/ratio"].item() == pytest.approx(1.0, abs=1e-15)
    assert output.metrics["policy/approx_kl"].item() == pytest.approx(0.12897099356, abs=1e-10)


# The value function


@check
@given(numbers, masks(), clipranges, st.integers(1, 30))
def test_value_loss(draw: Numbers, mask: np.ndarray, cliprange: float, num_tokens: int) -> None:
    values, old, returns = draw(*mask.shape), draw(*mask.shape, scale=0.7), draw(*mask.shape)
    expected = oracle.value(values, old, returns, mask, cliprange, num_tokens)
    x = tensor(values, grad=True)  # so that a metric that still hangs on the graph is seen
    assert_output(value_of(x, old, returns, mask, cliprange, num_tokens), expected)
    assert_output(value_of(x, old, returns, mask, cliprange, torch.tensor(num_tokens)), expected)


@check
@given(smooth_numbers, masks(), clipranges)
def test_value_gradient(draw: Numbers, mask: np.ndarray, cliprange: float) -> None:
    """(V - R) / N, or nothing where the clipped value errs more."""
    old, returns = draw(*mask.shape), draw(*mask.shape)
    values = old + draw(*mask.shape, scale=0.4)
    clipped = np.clip(values, old - cliprange, old + cliprange)
    outside = np.abs(values - old) > cliprange
    assume((np.abs(np.abs(values - old) - cliprange) > 1e-3).all())
    assume((np.abs(np.abs(values - returns) - np.abs(clipped - returns))[outside] > 1e-3).all())
    x = tensor(values, grad=True)
    loss = value_of(x, old, returns, mask, cliprange, 5).loss
    assert_gradient(loss, x, lambda at: oracle.value(at, old, returns, mask, cliprange, 5)["value/loss"])
    held = outside & (np.abs(clipped - returns) > np.abs(values - returns))
    (gradient,) = torch.autograd.grad(loss, x)
    assert_close(gradient, np.where(mask & ~held, (values - returns) / 5, 0.0))


@pytest.mark.parametrize(
    ("value", "loss", "gradient"),
    [
        (1.1, 0.405, -0.9),  # within 0.2 of the old 1.0: (1.1 - 2)^2 / 2, slope 1.1 - 2
        (1.5, 0.32, 0.0),  # clipped to 1.2: (1.2 - 2)^2 / 2 = 0.32 exceeds 0.125; no slope towards the return
        (0.5, 1.125, -1.5),  # clipped to 0.8: 0.72 is below (0.5 - 2)^2 / 2 = 1.125; pulled back
        (3.5, 1.125, 1.5),  # beyond the return: (3.5 - 2)^2 / 2 exceeds 0.32; pulled back
    ],
)
def test_value_clipping(value: float, loss: float, gradient: float) -> None:
    x = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    output = value_of(x, np.array([[1.0]]), np.array([[2.0]]), np.ones((1, 1), dtype=bool))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss, abs=1e-14)
    assert x.grad.item() == pytest.approx(gradient, abs=1e-14)
    assert output.metrics["value/clip_fraction"].item() == float(gradient == 0.0)


def test_value_loss_halves_the_squared_error() -> None:
    output = value_of(np.array([[3.0]]), np.array([[3.0]]), np.array([[1.0]]), np.ones((1, 1), dtype=bool))
    assert output.loss.item() == 2.0  # 0.5 x (3 - 1)^2
    assert output.metrics["value/error"].item() == 4.0


def test_value_loss_by_hand() -> None:
    # clip 0.2. value, old, return: clipped value; squared errors free, clipped
    #   1.0, 0.5, 0.9: 0.7; 0.01, 0.04 (clipped)
    #   0.0, 0.1, 1.0: 0.0; 1, 1
    #   0.5, 0.5, 0.0: 0.5; 0.25, 0.25
    # 0.5 x (0.04 + 1 + 0.25) / 3 = 0.215; clipped 1 of 3; mean error (0.01 + 1 + 0.25) / 3 = 0.42
    values, old = np.array([[1.0, 0.0], [0.5, 8.0]]), np.array([[0.5, 0.1], [0.5, 0.0]])
    returns, mask = np.array([[0.9, 1.0], [0.0, 3.0]]), np.array([[True, True], [True, False]])
    output = value_of(values, old, returns, mask)
    assert output.loss.item() == pytest.approx(0.215, abs=1e-15)
    assert output.metrics["value/loss"].item() == pytest.approx(0.215, abs=1e-15)
    assert output.metrics["value/clip_fraction"].item() == pytest.approx(1 / 3, abs=1e-15)
    assert output.metrics["value/error"].item() == pytest.approx(0.42, abs=1e-15)


# Missing EOS


@check
@given(numbers, st.lists(st.booleans(), min_size=1, max_size=6), modes, st.floats(-9, 9))
def test_missing_eos(draw: Numbers, ended: list[bool], mode: str, value: float) -> None:
    scores = draw(len(ended), scale=3)
    ours = missing_eos_scores(tensor(scores), torch.tensor(ended), mode=mode, value=value)
    assert_close(ours, oracle.missing_eos(scores, ended, mode, value))
    assert torch.equal(ours[torch.tensor(ended)], tensor(scores)[torch.tensor(ended)])


def test_missing_eos_by_hand() -> None:
    scores, ended = torch.tensor([2.0, 3.0, -4.0]), torch.tensor([True, False, False])
    assert missing_eos_scores(scores, ended, mode="replace", value=-1.0).tolist() == [2.0, -1.0, -1.0]
    assert missing_eos_scores(scores, ended, mode="penalty", value=1.0).tolist() == [2.0, 2.0, -5.0]
    assert scores.tolist() == [2.0, 3.0, -4.0]
