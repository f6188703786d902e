"""Every loss and every logged metric against its oracle, and what must hold of any of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.losses import (
    LossOutput,
    dpo_loss,
    gae,
    masked_mean,
    masked_moments,
    policy_loss,
    ranked_pairs,
    reward_loss,
    sft_loss,
    token_rewards,
    value_loss,
    whiten,
)
from tests.losses import oracle
from tests.losses.support import (
    Numbers,
    any_masks,
    assert_adds_up,
    assert_close,
    assert_gradient,
    assert_output,
    check,
    completion_masks,
    masks,
    numbers,
    partition,
    seeds,
    smooth_numbers,
    tensor,
)

counts = st.integers(1, 7)


# Supervised fine-tuning


def _sft(logits: Tensor, tokens: Tensor, mask: Tensor, num_tokens: int | Tensor) -> LossOutput:
    logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    return sft_loss(logprobs=logprobs[mask], num_tokens=num_tokens)


@check
@given(numbers, masks(), st.integers(2, 5), st.integers(0, 9))
def test_sft_is_the_nll_of_the_raw_logits(draw: Numbers, mask: np.ndarray, vocabulary: int, elsewhere: int) -> None:
    logits, tokens = draw(*mask.shape, vocabulary, scale=3), draw.rng.integers(0, vocabulary, mask.shape)
    num_tokens = int(mask.sum()) + elsewhere + 1  # tokens on other ranks count in the normaliser
    x = tensor(logits, grad=True)
    output = _sft(x, torch.tensor(tokens), tensor(mask), num_tokens)
    assert_output(output, {"loss": oracle.sft(logits, tokens, mask, num_tokens)})
    assert_output(_sft(x, torch.tensor(tokens), tensor(mask), torch.tensor(num_tokens)), {"loss": output.loss.item()})
    assert_gradient(output.loss, x, lambda at: oracle.sft(at, tokens, mask, num_tokens))


def test_sft_by_hand() -> None:
    # softmax([0, ln 3]) = [1/4, 3/4]; tokens 1 and 0: -ln(3/4) = 0.28768207, -ln(1/4) = 1.38629436; mean 0.83698822
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, math.log(3.0)]]], dtype=torch.float64)
    output = _sft(logits, torch.tensor([[1, 0]]), torch.tensor([[True, True]]), 2)
    assert output.loss.item() == pytest.approx(0.8369882167858358, abs=1e-15)


# The reward model


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


# Rankings


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


# DPO


def _dpo(four: Sequence[np.ndarray], beta: float, num_pairs: int | Tensor | None = None, e: float = 0.0) -> LossOutput:
    chosen, rejected, ref_chosen, ref_rejected = (x if isinstance(x, Tensor) else tensor(x) for x in four)
    return dpo_loss(
        chosen_logprobs=chosen,
        rejected_logprobs=rejected,
        ref_chosen_logprobs=ref_chosen,
        ref_rejected_logprobs=ref_rejected,
        beta=beta,
        num_pairs=len(chosen) if num_pairs is None else num_pairs,
        label_smoothing=e,
    )


def _four(draw: Numbers, count: int) -> list[np.ndarray]:
    """Policy and reference, chosen and rejected: the policy some nats away from the reference."""
    ref = [draw(count, scale=30, offset=-100) for _ in range(2)]
    return [ref[0] + draw(count, scale=8), ref[1] + draw(count, scale=8), *ref]


betas, smoothings = st.sampled_from([0.01, 0.1, 0.5, 2.0]), st.sampled_from([0.0, 0.1, 0.25, 0.5])


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


# Every loss: accumulation


@check
@given(numbers, any_masks(), seeds)
def test_sft_adds_up_over_microbatches(draw: Numbers, mask: np.ndarray, seed: int) -> None:
    logprobs = -np.abs(draw(int(mask.sum()) + 1))
    parts = partition(len(logprobs), seed)
    assert_adds_up(
        lambda i: sft_loss(logprobs=tensor(logprobs[i]), num_tokens=len(logprobs)), np.arange(len(logprobs)), parts
    )


@check
@given(numbers, counts, betas, smoothings, seeds)
def test_dpo_adds_up_over_microbatches(draw: Numbers, count: int, beta: float, smoothing: float, seed: int) -> None:
    four = _four(draw, count)
    parts = partition(count, seed)
    assert_adds_up(lambda i: _dpo([x[i] for x in four], beta, count, smoothing), np.arange(count), parts)


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


def _policy(arrays: Sequence[np.ndarray | Tensor], mask: np.ndarray, num_tokens: int) -> LossOutput:
    logprobs, old, advantages = (x if isinstance(x, Tensor) else tensor(x) for x in arrays)
    return policy_loss(
        logprobs=logprobs,
        old_logprobs=old,
        advantages=advantages,
        mask=tensor(mask),
        cliprange=0.2,
        num_tokens=num_tokens,
    )


def _value(arrays: Sequence[np.ndarray | Tensor], mask: np.ndarray, num_tokens: int) -> LossOutput:
    values, old, returns = (x if isinstance(x, Tensor) else tensor(x) for x in arrays)
    return value_loss(
        values=values,
        old_values=old,
        returns=returns,
        mask=tensor(mask),
        cliprange_value=0.2,
        num_tokens=num_tokens,
    )


@check
@given(numbers, masks(), seeds, st.sampled_from([_policy, _value]))
def test_ppo_adds_up_over_microbatches(draw: Numbers, mask: np.ndarray, seed: int, loss: Callable) -> None:
    """However the completions are dealt: microbatches of unlike token counts do not weigh alike."""
    arrays, total = [draw(*mask.shape) for _ in range(3)], max(1, int(mask.sum()))
    assert_adds_up(
        lambda i: loss([x[i] for x in arrays], mask[i], total), np.arange(len(mask)), partition(len(mask), seed)
    )


@check
@given(smooth_numbers, masks(), seeds, st.sampled_from([_policy, _value]))
def test_ppo_gradients_accumulate(draw: Numbers, mask: np.ndarray, seed: int, loss: Callable) -> None:
    arrays, total = [draw(*mask.shape) for _ in range(3)], max(1, int(mask.sum()))
    whole, split = tensor(arrays[0], grad=True), tensor(arrays[0], grad=True)
    loss([whole, *arrays[1:]], mask, total).loss.backward()
    for part in partition(len(mask), seed):
        loss([split[torch.tensor(part)], *(x[part] for x in arrays[1:])], mask[part], total).loss.backward()
    assert_close(split.grad, whole.grad.numpy())


# Every masked function: what lies outside the mask

Function = Callable[[list[Tensor], Tensor], list[Tensor]]


def _outputs(output: LossOutput) -> list[Tensor]:
    return [output.loss, *output.metrics.values()]


def _whitened(inputs: list[Tensor], mask: Tensor) -> list[Tensor]:
    mean, variance = masked_moments(inputs[0], mask)
    whitened = [whiten(inputs[0], mask, mean=mean, variance=variance, shift_mean=shift) for shift in (True, False)]
    return [mean, variance, *whitened]


def _rewards(inputs: list[Tensor], mask: Tensor) -> list[Tensor]:
    scores = torch.arange(1.0, len(mask) + 1, dtype=torch.float64)
    return [token_rewards(scores, inputs[0], mask, kl_coef=0.3)]


MASKED: dict[str, tuple[int, Function]] = {
    "policy_loss": (3, lambda inputs, mask: _outputs(_policy(inputs, mask.numpy(), 7))),
    "value_loss": (3, lambda inputs, mask: _outputs(_value(inputs, mask.numpy(), 7))),
    "masked_mean": (1, lambda inputs, mask: [masked_mean(inputs[0], mask)]),
    "whiten": (1, _whitened),
    "token_rewards": (1, _rewards),
    "gae": (2, lambda inputs, mask: list(gae(*inputs, mask, gamma=0.9, lam=0.8))),
}


@pytest.mark.parametrize("name", MASKED)
@check
@given(draw=smooth_numbers, mask=completion_masks(), which=st.integers(0, 7))
def test_what_lies_in_the_padding_changes_nothing(name: str, draw: Numbers, mask: np.ndarray, which: int) -> None:
    """NaN, infinities and huge numbers outside the mask: values and gradients stay to the bit, and are zero outside."""
    count, function = MASKED[name]
    clean = [draw(*mask.shape) for _ in range(count)]
    dirty = [
        np.where(mask, x, draw.garbage(*mask.shape)) if which == 7 or which % count == i else x
        for i, x in enumerate(clean)
    ]

    def run(arrays: list[np.ndarray]) -> tuple[list[Tensor], list[Tensor]]:
        inputs = [tensor(x, grad=True) for x in arrays]
        outputs = function(inputs, tensor(mask))
        slopes = [o for o in outputs if o.requires_grad]
        weights = [torch.arange(1.0, o.numel() + 1, dtype=o.dtype).view(o.shape) for o in slopes]
        gradients = torch.autograd.grad(slopes, inputs, weights)
        return outputs, list(gradients)

    for ours, expected in zip(run(dirty), run(clean), strict=True):
        for a, b in zip(ours, expected, strict=True):
            assert torch.isfinite(b).all()
            assert torch.equal(a, b)
            if b.shape == mask.shape:
                assert not a[~tensor(mask)].any()


@check
@given(numbers, masks())
def test_masked_mean(draw: Numbers, mask: np.ndarray) -> None:
    values = draw(*mask.shape)
    assert_close(masked_mean(tensor(values), tensor(mask)), oracle.moments(values, mask)[0])


def test_gradcheck() -> None:
    """PyTorch's own finite differences, away from the kinks."""
    draw = Numbers(5, None)
    mask = np.array([[True, True, False], [True, False, False]])
    inputs = [tensor(draw(2, 3), grad=True) for _ in range(3)]
    rest = [x.detach() for x in inputs[1:]]
    for loss in (_policy, _value):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss([x, *rest], mask, 3).loss, inputs[0])
    flat = [tensor(draw(4), grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda *x: _dpo(x, 0.3, 4, 0.1).loss, flat)
    margins = flat[2].detach()
    assert torch.autograd.gradcheck(
        lambda x, y: reward_loss(chosen_scores=x, rejected_scores=y, num_pairs=4, margins=margins).loss, flat[:2]
    )
