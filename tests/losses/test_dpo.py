"""The loss of DPO against its oracle, and its properties."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.losses import (
    LossOutput,
    preference_loss,
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
    smooth_numbers,
    tensor,
)

betas, smoothings = st.sampled_from([0.01, 0.1, 0.5, 2.0]), st.sampled_from([0.0, 0.1, 0.25, 0.5])


def _dpo(
    four: Sequence[np.ndarray],
    beta: float,
    num_pairs: int | Tensor | None = None,
    e: float = 0.0,
    loss_type: str = "sigmoid",
) -> LossOutput:
    chosen, rejected, *reference = (x if isinstance(x, Tensor) else tensor(x) for x in four)
    return preference_loss(
        losses={loss_type: 1.0},
        settings={"beta": beta, "label_smoothing": e},
        num_pairs=len(chosen) if num_pairs is None else num_pairs,
        chosen_logprobs=chosen,
        rejected_logprobs=rejected,
        chosen_lengths=torch.full_like(chosen, torch.nan),  # these losses do not read them
        rejected_lengths=torch.full_like(chosen, torch.nan),
        reference=(reference[0], reference[1]),
    )


def _four(draw: Numbers, count: int) -> list[np.ndarray]:
    """Policy and reference, chosen and rejected: the policy some nats away from the reference."""
    ref = [draw(count, scale=30, offset=-100) for _ in range(2)]
    return [ref[0] + draw(count, scale=8), ref[1] + draw(count, scale=8), *ref]


@check
@given(numbers, counts, betas, smoothings, st.integers(0, 5))
def test_dpo(draw: Numbers, count: int, beta: float, smoothing: float, elsewhere: int) -> None:
    four, total = _four(draw, count), count + elsewhere
    inputs = [tensor(x, grad=i < 2) for i, x in enumerate(four)]
    output = _dpo(inputs, beta, torch.tensor(total), smoothing)
    assert_output(output, oracle.dpo(*four, beta, total, smoothing))
    for i in range(2):
        assert_gradient(
            output.loss,
            inputs[i],
            lambda at, i=i: oracle.dpo(*four[:i], at, *four[i + 1 :], beta, total, smoothing)["loss"],
        )


@pytest.mark.parametrize("loss_type", ["hinge", "ipo"])
@check
@given(draw=smooth_numbers, count=counts, beta=betas)
def test_the_other_losses_of_the_margin(loss_type: str, draw: Numbers, count: int, beta: float) -> None:
    four = _four(draw, count)
    inputs = [tensor(x, grad=i < 2) for i, x in enumerate(four)]
    output = _dpo(inputs, beta, count, loss_type=loss_type)
    assert_output(output, oracle.dpo(*four, beta, count, loss_type=loss_type))
    output.loss.backward()
    h = beta * ((four[0] - four[2]) - (four[1] - four[3]))
    slope = np.where(h < 1, -beta, 0.0) if loss_type == "hinge" else 2 * (h / beta - 1 / (2 * beta))
    assert_close(inputs[0].grad, slope / count)
    assert_close(inputs[1].grad, -slope / count)


@check
@given(numbers, counts, betas)
def test_dpo_gradient_is_the_papers(draw: Numbers, count: int, beta: float) -> None:
    """-beta sigmoid(reward_l - reward_w) [grad log pi(y_w) - grad log pi(y_l)], below eq. 7."""
    four = _four(draw, count)
    inputs = [tensor(x, grad=True) for x in four[:2]]
    _dpo([*inputs, *four[2:]], beta).loss.backward()
    h = [beta * ((four[0][i] - four[2][i]) - (four[1][i] - four[3][i])) for i in range(count)]
    weight = np.array([beta * math.exp(oracle.log_sigmoid(-x)) / count for x in h])
    assert_close(inputs[0].grad, -weight)
    assert_close(inputs[1].grad, weight)


@check
@given(numbers, counts, betas, smoothings)
def test_dpo_at_the_reference(draw: Numbers, count: int, beta: float, smoothing: float) -> None:
    chosen, rejected = draw(count, scale=30, offset=-100), draw(count, scale=30, offset=-100)
    output = _dpo([chosen, rejected, chosen, rejected], beta, e=smoothing)
    assert output.loss.item() == pytest.approx(math.log(2), rel=4e-16 * count)
    for name in ("accuracy", "margin", "reward/chosen", "reward/rejected", "drift/chosen", "drift/rejected"):
        assert output.metrics[name].item() == 0.0


def test_dpo_of_one_pair_at_the_reference_is_exactly_log_2() -> None:
    assert _dpo([np.array([-7.5])] * 4, 0.1).loss.item() == math.log(2)


@check
@given(numbers, counts, betas, smoothings, st.floats(-20, 20))
def test_dpo_is_invariant_to_a_constant(draw: Numbers, count: int, beta: float, smoothing: float, shift: float) -> None:
    """On both sides of the policy loss and margin stay; on policy and reference of one side all but log p stays."""
    four = _four(draw, count)
    here = _dpo(four, beta, e=smoothing)
    both = _dpo([four[0] + shift, four[1] + shift, *four[2:]], beta, e=smoothing)
    for name in ("loss", "accuracy", "margin"):
        if name != "accuracy" or draw.decimals is None:  # a tie may round to either side
            assert_close(both.metrics[name], here.metrics[name].numpy())
    assert_close(both.metrics["drift/chosen"] - here.metrics["drift/chosen"], shift)
    side = _dpo([four[0] + shift, four[1], four[2] + shift, four[3]], beta, e=smoothing)
    for name in ("loss", "margin", "reward/chosen", "reward/rejected", "drift/chosen", "drift/rejected"):
        assert_close(side.metrics[name], here.metrics[name].numpy())


@check
@given(numbers, counts, betas, smoothings)
def test_swapping_the_sides_negates_the_margin(draw: Numbers, count: int, beta: float, smoothing: float) -> None:
    four = _four(draw, count)
    here, swapped = _dpo(four, beta, e=smoothing), _dpo([four[1], four[0], four[3], four[2]], beta, e=1 - smoothing)
    assert_close(swapped.metrics["margin"], -here.metrics["margin"].numpy())
    assert_close(swapped.metrics["reward/chosen"], here.metrics["reward/rejected"].numpy())
    assert_close(swapped.metrics["drift/rejected"], here.metrics["drift/chosen"].numpy())
    assert_close(swapped.loss, here.loss.numpy())  # a swapped pair with a flipped label is the same evidence


def test_dpo_by_hand() -> None:
    # chosen -10 against the reference's -12: drift 2; rejected -14 against -13: drift -1; h = 0.1 (2 + 1) = 0.3
    # -log sigmoid(0.3) = ln(1 + e^-0.3) = 0.5543552444685271, -log sigmoid(-0.3) = 0.8543552444685271
    # with smoothing 0.1: 0.9 x 0.5543552444685271 + 0.1 x 0.8543552444685271 = 0.5843552444685271
    four = [np.array([x]) for x in (-10.0, -14.0, -12.0, -13.0)]
    plain, smooth = _dpo(four, 0.1), _dpo(four, 0.1, e=0.1)
    assert plain.loss.item() == pytest.approx(0.5543552444685271, abs=1e-15)
    assert smooth.loss.item() == pytest.approx(0.5843552444685271, abs=1e-15)
    expected = {
        "loss": 0.5543552444685271,
        "accuracy": 1.0,
        "margin": 0.3,
        "reward/chosen": 0.2,
        "reward/rejected": -0.1,
        "drift/chosen": 2.0,
        "drift/rejected": -1.0,
        "logprobs/chosen": -10.0,
        "logprobs/rejected": -14.0,
    }
    assert {name: pytest.approx(value.item(), abs=1e-12) for name, value in plain.metrics.items()} == expected


@check
@given(numbers, counts, betas, smoothings, seeds)
def test_dpo_adds_up_over_microbatches(draw: Numbers, count: int, beta: float, smoothing: float, seed: int) -> None:
    four = _four(draw, count)
    parts = partition(count, seed)
    assert_adds_up(lambda i: _dpo([x[i] for x in four], beta, count, smoothing), np.arange(count), parts)


def test_gradcheck() -> None:
    """PyTorch's own finite differences."""
    draw = Numbers(5, None)
    four = [tensor(draw(4), grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda *x: _dpo(x, 0.3, 4, 0.1).loss, four)
