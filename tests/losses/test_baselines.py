"""Advantages without a value model, against loops written from the papers in float64, and by their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.losses import group_relative, kl_estimate, kl_loss, leave_one_out, policy_loss, rewards_to_go
from tests.losses.support import check

scores_of_groups = st.lists(
    st.lists(st.floats(-50, 50, allow_nan=False).map(lambda x: round(x, 3)), min_size=2, max_size=5),
    min_size=1,
    max_size=4,
)


def flat(groups: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.tensor([s for g in groups for s in g], dtype=torch.float64)
    return scores, torch.tensor([i for i, g in enumerate(groups) for _ in g])


@check
@given(scores_of_groups)
def test_leave_one_out(groups: list[list[float]]) -> None:
    expected = [r - sum(g[:i] + g[i + 1 :]) / (len(g) - 1) for g in groups for i, r in enumerate(g)]
    np.testing.assert_allclose(leave_one_out(*flat(groups)), expected, atol=1e-9)


def test_leave_one_out_by_hand() -> None:
    """Rewards 1, 2 and 6 of one prompt: the baselines are 4, 3.5 and 1.5."""
    assert leave_one_out(*flat([[1.0, 2.0, 6.0]])).tolist() == [-3.0, -1.5, 4.5]


@check
@given(scores_of_groups, st.booleans())
def test_group_relative(groups: list[list[float]], scale: bool) -> None:
    expected = []
    for g in groups:
        mean = sum(g) / len(g)
        std = math.sqrt(sum((r - mean) ** 2 for r in g) / (len(g) - 1))
        expected += [(r - mean) / (std + 1e-4 if scale else 1.0) for r in g]
    np.testing.assert_allclose(group_relative(*flat(groups), scale=scale), expected, atol=1e-7)


def test_a_group_of_equal_scores_teaches_nothing() -> None:
    scores, groups = flat([[3.0, 3.0, 3.0], [0.0, 1.0]])
    for advantages in (
        leave_one_out(scores, groups),
        group_relative(scores, groups, scale=True),
        group_relative(scores, groups, scale=False),
    ):
        assert advantages[:3].tolist() == [0.0, 0.0, 0.0] and advantages[3] < 0 < advantages[4]


@check
@given(scores_of_groups, st.floats(-20, 20))
def test_a_level_that_all_scores_share_changes_nothing(groups: list[list[float]], level: float) -> None:
    scores, of = flat(groups)
    np.testing.assert_allclose(leave_one_out(scores + level, of), leave_one_out(scores, of), atol=1e-8)
    np.testing.assert_allclose(
        group_relative(scores + level, of, scale=False), group_relative(scores, of, scale=False), atol=1e-8
    )


@check
@given(st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=6), min_size=1, max_size=4))
def test_rewards_to_go(completions: list[list[float]]) -> None:
    rewards, rows = flat(completions)
    expected = [sum(c[t:]) for c in completions for t in range(len(c))]
    np.testing.assert_allclose(rewards_to_go(rewards, rows), expected, atol=1e-9)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_estimators_of_the_kl(estimator: str) -> None:
    """k1 and k3 have the KL as their mean under pi, k2 nearly; the last two are never negative."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.35, 0.25])
    logp, logq = torch.tensor(np.log(p)), torch.tensor(np.log(q))
    values = kl_estimate(logp, logq, estimator)  # type: ignore[arg-type]
    d = np.log(p) - np.log(q)
    expected = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[estimator]
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    kl = float((p * d).sum())
    assert float((torch.tensor(p) * values).sum()) == pytest.approx(kl, rel=0.1 if estimator == "k2" else 1e-9)
    if estimator != "k1":
        assert float(values.min()) >= 0


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_kl_in_the_loss_pulls_the_policy_to_the_reference(estimator: str) -> None:
    """d loss / d logp is d / N for k2 and (1 - exp(-d)) / N for k3: of the sign of the difference."""
    logprobs = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.5, -1.0, -0.5], dtype=torch.float64)
    output = kl_loss(logprobs=logprobs, ref_logprobs=reference, estimator=estimator, num_tokens=6)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(output.loss, logprobs)
    d = (logprobs - reference).detach()
    torch.testing.assert_close(gradient, (d if estimator == "k2" else 1 - (-d).exp()) / 6)
    assert output.metrics["kl/loss"] == output.loss.detach() and not output.metrics["kl/loss"].requires_grad


@pytest.mark.parametrize(("ratio", "advantage", "moves"), [(1.25, 1.0, True), (1.35, 1.0, False), (0.75, -1.0, False)])
def test_a_higher_upper_clip_lets_rare_tokens_grow(ratio: float, advantage: float, moves: bool) -> None:
    logprobs = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    loss = policy_loss(
        logprobs=logprobs,
        old_logprobs=torch.zeros(1, dtype=torch.float64),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        cliprange=0.2,
        cliprange_high=0.3,
        num_tokens=1,
    ).loss
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert bool(gradient.item() != 0) == moves
