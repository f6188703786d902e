"""Importance weights for an engine that rounds otherwise: against the equation in float64, and the corners where they do nothing."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.losses import policy_loss, truncated_weights
from tests.losses.support import Numbers, assert_close, check, smooth_numbers, tensor

caps = st.sampled_from([1.0, 1.5, 2.0])


@check
@given(smooth_numbers, caps)
def test_a_weight_is_the_ratio_up_to_the_cap(draw: Numbers, cap: float) -> None:
    old, engine = draw(9, scale=0.8), draw(9, scale=0.8)
    expected = [min(math.exp(ours - theirs), cap) for ours, theirs in zip(old, engine, strict=True)]
    assert_close(truncated_weights(tensor(old), tensor(engine), cap=cap), expected)


@check
@given(smooth_numbers, caps)
def test_the_policy_loss_is_weighed_token_by_token(draw: Numbers, cap: float) -> None:
    """And so is its gradient; what is measured of the policy is not."""
    old, engine, advantages = draw(7), draw(7), draw(7)
    x, weights = tensor(old + draw(7, scale=0.3), grad=True), truncated_weights(tensor(old), tensor(engine), cap=cap)
    fixed = {"logprobs": x, "old_logprobs": tensor(old), "advantages": tensor(advantages), "cliprange": 0.2}
    weighed = policy_loss(**fixed, num_tokens=5, weights=weights)
    each = [
        w * max(-a * r, -a * min(max(r, 0.8), 1.2))
        for w, a, r in zip(weights.tolist(), advantages, np.exp(x.detach().numpy() - old), strict=True)
    ]
    assert_close(weighed.loss, sum(each) / 5)
    assert_close(weighed.metrics["policy/loss"], sum(each) / 5)
    plain = policy_loss(**fixed, num_tokens=5)
    ours, theirs = (torch.autograd.grad(output.loss, x)[0] for output in (weighed, plain))
    assert_close(ours, (weights * theirs).numpy())
    for name in ("policy/ratio", "policy/clip_fraction", "policy/approx_kl"):
        assert torch.equal(weighed.metrics[name], plain.metrics[name])


def test_an_engine_that_agrees_changes_no_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs, old, advantages = torch.randn(3, 1000, generator=generator).unbind()
    weights = truncated_weights(old, old.clone(), cap=2.0)
    assert (weights == 1.0).all()
    fixed = {"logprobs": logprobs, "old_logprobs": old, "advantages": advantages, "cliprange": 0.2, "num_tokens": 1000}
    assert torch.equal(policy_loss(**fixed, weights=weights).loss, policy_loss(**fixed).loss)


def test_a_token_that_the_engine_found_impossible_has_the_cap() -> None:
    """vLLM writes -9999 for minus infinity."""
    assert truncated_weights(tensor([-1.0]), tensor([-9999.0]), cap=2.0).tolist() == [2.0]
