"""Every function that takes a mask: microbatches add up, and what lies outside the mask changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.losses import (
    LossOutput,
    gae,
    masked_mean,
    masked_moments,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from tests.losses import oracle
from tests.losses.support import (
    Numbers,
    assert_adds_up,
    assert_close,
    check,
    completion_masks,
    masks,
    numbers,
    partition,
    seeds,
    smooth_numbers,
    tensor,
)


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
