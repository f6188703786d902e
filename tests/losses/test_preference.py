"""DPO's family of losses against its oracle and its properties, and what is logged of a mix."""

from __future__ import annotations

import math
from inspect import signature
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.losses.preference import LOSSES
from rlhf.recipe import preference as recipe
from tests.losses.preference_cases import (
    FREE,
    SETTINGS,
    SORTED,
    WITH_REFERENCE,
    alike,
    draw_six,
    expected_loss,
    float32,
    loss_of,
)
from tests.losses.support import (
    Numbers,
    assert_adds_up,
    assert_close,
    assert_gradient,
    check,
    counts,
    numbers,
    partition,
    seeds,
    smooth_numbers,
    tensor,
)

LOG_2 = math.log(2)
every = pytest.mark.parametrize("name", SETTINGS)


def test_every_loss_has_a_case_and_the_recipe_knows_what_it_reads() -> None:
    assert set(LOSSES) == set(SETTINGS) == set(get_args(recipe.LossName))
    for name, function in LOSSES.items():
        taken = set(signature(function).parameters)
        assert {key for key, readers in recipe.READ_BY.items() if name in readers} == taken & set(recipe.READ_BY)
        assert set(SETTINGS[name]) == taken & set(recipe.READ_BY)
        compared = any(key.startswith("ref_") or key.endswith("_logratios") for key in taken)
        assert compared == (name not in recipe.NO_REFERENCE) == (name not in FREE)
    assert recipe.WHOLE_STEP == SORTED


@every
@check
@given(draw=numbers, count=counts, elsewhere=st.integers(0, 5))
def test_the_loss_is_the_oracles(name: str, draw: Numbers, count: int, elsewhere: int) -> None:
    six, total = draw_six(draw, count), count + elsewhere
    output = loss_of({name: 1.0}, six, SETTINGS[name], torch.tensor(total), reference=name not in FREE)
    assert_close(output.loss, expected_loss(name, six, SETTINGS[name], total))
    assert_close(output.metrics["loss"], output.loss.numpy())


@every
@check
@given(draw=smooth_numbers, count=counts)
def test_the_gradient_is_the_oracles_slope(name: str, draw: Numbers, count: int) -> None:
    six = draw_six(draw, count)
    inputs = [tensor(x, grad=i < 2) for i, x in enumerate(six)]
    loss = loss_of({name: 1.0}, inputs, SETTINGS[name], count).loss
    for i in range(1 if name == "sft" else 2):
        changed = lambda at, i=i: expected_loss(name, [*six[:i], at, *six[i + 1 :]], SETTINGS[name], count)  # noqa: E731
        assert_gradient(loss, inputs[i], changed)


@every
def test_gradcheck(name: str) -> None:
    """PyTorch's own finite differences."""
    six = draw_six(Numbers(5, None), 4)
    inputs = [tensor(x, grad=True) for x in six[:2]]
    function = lambda *x: loss_of({name: 1.0}, [*x, *six[2:]], SETTINGS[name], 4).loss  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in SORTED])
@check
@given(draw=numbers, count=counts, seed=seeds)
def test_it_adds_up_over_microbatches(name: str, draw: Numbers, count: int, seed: int) -> None:
    six = draw_six(draw, count)
    weights = {"sft": 0.5} | {name: 2.0}
    assert_adds_up(
        lambda i: loss_of(weights, [x[i] for x in six], SETTINGS[name], count), np.arange(count), partition(count, seed)
    )


@pytest.mark.parametrize("name", SORTED)
def test_a_sorted_loss_does_not_add_up_and_pairs_may_come_in_any_order(name: str) -> None:
    """Why recipes with accumulation or several processes are refused."""
    six = draw_six(Numbers(1, None), 6)
    whole = loss_of({name: 1.0}, six, SETTINGS[name], 6).loss.item()
    parts = [loss_of({name: 1.0}, [x[i] for x in six], SETTINGS[name], 6).loss.item() for i in (range(3), range(3, 6))]
    assert abs(sum(parts) - whole) > 1e-4
    assert loss_of({name: 1.0}, [x[::-1].copy() for x in six], SETTINGS[name], 6).loss.item() == pytest.approx(whole)
    if name == "aot_unpaired":  # which rejected completion belongs to which chosen one does not matter
        mixed = [six[0], six[1][::-1].copy(), six[2], six[3][::-1].copy(), *six[4:]]
        assert loss_of({name: 1.0}, mixed, SETTINGS[name], 6).loss.item() == pytest.approx(whole)


AT_THE_REFERENCE = {
    "sigmoid": LOG_2, "robust": LOG_2, "sigmoid_norm": LOG_2, "dpop": LOG_2, "aot": LOG_2, "aot_unpaired": LOG_2,
    "hinge": 1.0, "apo_zero": 1.0, "apo_down": 1.0, "nca_pair": 2 * LOG_2, "bco_pair": 2 * LOG_2,
    "discopop": 0.5 * LOG_2 + 0.5, "exo_pair": 0.5 * math.log(0.5 / 0.95) + 0.5 * math.log(0.5 / 0.05),
    "ipo": (1 / 0.6) ** 2, "sppo_hard": 2 * (1 / 0.4) ** 2,
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_REFERENCE)
@check
@given(draw=numbers, count=counts)
def test_at_the_reference_and_with_a_beta_near_zero(name: str, draw: Numbers, count: int) -> None:
    """beta weighs the log-ratios, so without any of it the policy might as well be its reference."""
    six = draw_six(draw, count)
    here = loss_of({name: 1.0}, alike(six), SETTINGS[name])
    assert here.loss.item() == pytest.approx(AT_THE_REFERENCE[name], rel=1e-12)
    assert here.metrics["margin"].item() == here.metrics["drift/chosen"].item() == 0.0
    if name not in ("ipo", "sppo_hard"):  # where 1 / beta is what a log-ratio should reach
        near = loss_of({name: 1.0}, six, SETTINGS[name] | {"beta": 1e-12})
        assert near.loss.item() == pytest.approx(AT_THE_REFERENCE[name], rel=1e-8)


OF_DIFFERENCES = ("sigmoid", "robust", "hinge", "ipo", "exo_pair", "aot", "aot_unpaired", "discopop", "cpo")


@every
@check
@given(draw=smooth_numbers, count=counts, shift=st.floats(-4, -0.5))
def test_shifts(name: str, draw: Numbers, count: int, shift: float) -> None:
    """What adds a constant to both sides of the policy is invisible to a loss of their difference, and to no other; what adds
    it to policy and reference alike is invisible to every loss with a reference.
    """
    six = draw_six(draw, count)
    loss = loss_of({name: 1.0}, six, SETTINGS[name]).loss.item()
    both = loss_of({name: 1.0}, [six[0] + shift, six[1] + shift, *six[2:]], SETTINGS[name]).loss.item()
    unequal = bool((six[4] != six[5]).any())
    if name in OF_DIFFERENCES:
        assert both == pytest.approx(loss, rel=1e-9)
    elif (unequal or name not in ("simpo", "sigmoid_norm", "orpo")) and name not in ("dpop", "apo_down"):
        assert abs(both - loss) > 1e-9 * abs(loss)
    side = loss_of({name: 1.0}, [six[0] + shift, six[1], six[2] + shift, *six[3:]], SETTINGS[name]).loss.item()
    if name in WITH_REFERENCE:
        assert side == pytest.approx(loss, rel=1e-9)
    else:
        assert side != loss


@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_norm", "simpo", "cpo", "orpo"])
@check
@given(draw=numbers)
def test_a_swapped_pair_costs_its_margin_more(name: str, draw: Numbers) -> None:
    """-log sigmoid(-x) + log sigmoid(x) = x, the loss's own margin; so at x = 0 both orders cost the same."""
    six = draw_six(draw, 1)
    settings = SETTINGS[name] | {"label_smoothing": 0.0, "simpo_gamma": 0.0}
    swapped = [six[i] for i in (1, 0, 3, 2, 5, 4)]
    cost, other = (loss_of({name: 1.0}, x, settings).loss.item() for x in (six, swapped))
    beta = settings.get("beta", 1.0)
    w, l, ref_w, ref_l, len_w, len_l = (float(x[0]) for x in six)  # noqa: E741
    odds = [math.log(math.exp(a) / (1 - math.exp(a))) for a in (w / len_w, l / len_l)]
    margin = {
        "sigmoid": beta * (w - ref_w - l + ref_l), "sigmoid_norm": beta * ((w - ref_w) / len_w - (l - ref_l) / len_l),
        "simpo": beta * (w / len_w - l / len_l), "cpo": beta * (w - l), "orpo": odds[0] - odds[1],
    }[name]  # fmt: skip
    assert other - cost == pytest.approx(margin, rel=1e-9, abs=1e-9)


@check
@given(draw=numbers, count=counts)
def test_robust_is_right_on_average(draw: Numbers, count: int) -> None:
    """Of labels that are wrong with probability e, its mean is DPO's loss of the right ones."""
    six = draw_six(draw, count)
    swapped = [six[i] for i in (1, 0, 3, 2, 5, 4)]
    e = SETTINGS["robust"]["label_smoothing"]
    right, wrong = (loss_of({"robust": 1.0}, x, SETTINGS["robust"]).loss.item() for x in (six, swapped))
    dpo = loss_of({"sigmoid": 1.0}, six, {"beta": SETTINGS["robust"]["beta"]}).loss.item()
    assert (1 - e) * right + e * wrong == pytest.approx(dpo, rel=1e-9)


def test_labels_are_not_smoothed_unless_asked() -> None:
    six = [tensor([x]) for x in (-1.0, -3.0, -1.0, -1.0, 1.0, 1.0)]
    for name in ("sigmoid", *SORTED):
        loss = loss_of({name: 1.0}, six, {"beta": 0.5}).loss.item()
        assert loss == pytest.approx(math.log1p(math.exp(-1.0)), abs=1e-15)  # -log sigmoid(0.5 x 2)


@check
@given(draw=numbers, count=counts)
def test_a_mix_is_the_weighted_sum_and_logs_its_parts(draw: Numbers, count: int) -> None:
    six, settings = draw_six(draw, count), {"beta": 0.2, "simpo_gamma": 0.7}
    weights = {"sigmoid": 1.0, "sft": 0.2, "simpo": 3.0}
    output = loss_of(weights, [tensor(x, grad=i < 2) for i, x in enumerate(six)], settings, count + 2)
    assert output.loss.requires_grad and not [name for name, x in output.metrics.items() if x.requires_grad]
    alone = {name: loss_of({name: 1.0}, six, settings, count + 2) for name in weights}
    assert_close(output.loss, sum(weight * alone[name].loss.item() for name, weight in weights.items()))
    for name in weights:
        assert_close(output.metrics[f"loss/{name}"], alone[name].loss.numpy())
        assert not [key for key in alone[name].metrics if key.startswith("loss/")]
    others = {key for key in output.metrics if not key.startswith("loss")}
    assert others == {key for key in alone["sft"].metrics if key != "loss"}
    for key in others:
        assert_close(output.metrics[key], alone["sft"].metrics[key].numpy())


@check
@given(draw=smooth_numbers, count=counts)
def test_without_a_reference_the_margin_is_that_of_a_token(draw: Numbers, count: int) -> None:
    six = draw_six(draw, count)
    metrics = loss_of({"cpo": 1.0}, six, SETTINGS["cpo"], count + 1, reference=False).metrics
    assert set(metrics) == {"loss", "accuracy", "margin", "logprobs/chosen", "logprobs/rejected"}
    margins = [six[0][i] / six[4][i] - six[1][i] / six[5][i] for i in range(count)]
    assert_close(metrics["margin"], sum(margins) / (count + 1))
    assert_close(metrics["accuracy"], sum(margin > 0 for margin in margins) / (count + 1))
    assert_close(metrics["logprobs/chosen"], sum(six[0]) / (count + 1))
    assert_close(metrics["logprobs/rejected"], sum(six[1]) / (count + 1))


@every
@pytest.mark.parametrize("gap", [-3000.0, 3000.0])
def test_extreme_pairs_have_finite_gradients(name: str, gap: float) -> None:
    """In float32, where exp overflows above 88."""
    chosen, rejected = float32(-4000.0 + gap, grad=True), float32(-4000.0, grad=True)
    six = [chosen, rejected, float32(-4000.0), float32(-4000.0), float32(9.0), float32(9.0)]
    settings = SETTINGS[name] | ({"discopop_tau": 0.05} if name == "discopop" else {})
    loss = loss_of({name: 1.0}, six, settings).loss
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(chosen.grad).all()
    assert rejected.grad is None or torch.isfinite(rejected.grad).all()


def test_a_completion_that_is_certain_has_finite_odds() -> None:
    chosen, rejected = float32(0.0, grad=True), float32(-8.0, grad=True)
    loss = loss_of({"orpo": 1.0}, [chosen, rejected, chosen, rejected, float32(4.0), float32(4.0)], {}, 1, False).loss
    loss.backward()
    # odds of 1e6 : 1 against exp(-2) / (1 - exp(-2))
    assert loss.item() == pytest.approx(math.log1p(1e-6 * math.exp(-2) / (1 - math.exp(-2))), rel=0.2)
    assert torch.isfinite(chosen.grad).all() and torch.isfinite(rejected.grad).all()


def test_by_hand() -> None:
    # r_w = 2, r_l = -1, beta 0.5, lengths 4 and 2: beta r_w = 1, beta r_l = -0.5, h = 1.5
    six = [tensor([x]) for x in (-10.0, -14.0, -12.0, -13.0, 4.0, 2.0)]
    settings = {"beta": 0.5, "discopop_tau": 0.5, "dpop_lambda": 2.0, "simpo_gamma": 1.0, "label_smoothing": 0.0}
    s15, s1, s05 = math.log1p(math.exp(-1.5)), math.log1p(math.exp(-1)), math.log1p(math.exp(-0.5))
    expected = {
        "sigmoid": s15, "hinge": 0.0, "ipo": 4.0, "sppo_hard": 1.0, "nca_pair": s1 + 0.5 * (1 + s1) + 0.5 * s05,
        "bco_pair": s1 + s05, "apo_zero": 1 - 1 / (1 + math.exp(-1)) + 1 / (1 + math.exp(0.5)),
        "sigmoid_norm": s05, "dpop": s15, "simpo": math.log1p(math.exp(-1.25)), "cpo": math.log1p(math.exp(-2)),
        "sft": 2.5,
    }  # fmt: skip
    # sigmoid_norm: 0.5 (2 / 4 + 1 / 2) = 0.5; simpo: 0.5 (-10 / 4 + 14 / 2) - 1 = 1.25
    for name, value in expected.items():
        assert loss_of({name: 1.0}, six, settings).loss.item() == pytest.approx(value, abs=1e-12), name
    # dpop with the chosen side below its reference by 1: h = 0.5 (-1 + 3), less 0.5 x 2 x 1, is zero
    lower = [tensor([x]) for x in (-13.0, -16.0, -12.0, -13.0, 4.0, 2.0)]
    assert loss_of({"dpop": 1.0}, lower, settings).loss.item() == pytest.approx(LOG_2, abs=1e-12)
