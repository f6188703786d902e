"""The losses of PPO add up over microbatches, and what lies in the padding of `gae` changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.losses import gae
from tests.losses.support import (
    Numbers,
    assert_adds_up,
    assert_close,
    check,
    completion_masks,
    masks,
    numbers,
    partition,
    policy_of,
    seeds,
    smooth_numbers,
    tensor,
    value_of,
)


@check
@given(numbers, masks(), seeds, st.sampled_from([policy_of, value_of]))
def test_ppo_adds_up_over_microbatches(draw: Numbers, mask: np.ndarray, seed: int, loss: Callable) -> None:
    """However the completions are dealt: microbatches of unlike token counts do not weigh alike."""
    arrays, total = [draw(*mask.shape) for _ in range(3)], max(1, int(mask.sum()))
    assert_adds_up(
        lambda i: loss(*(x[i] for x in arrays), mask[i], num_tokens=total),
        np.arange(len(mask)),
        partition(len(mask), seed),
    )


@check
@given(smooth_numbers, masks(), seeds, st.sampled_from([policy_of, value_of]))
def test_ppo_gradients_accumulate(draw: Numbers, mask: np.ndarray, seed: int, loss: Callable) -> None:
    arrays, total = [draw(*mask.shape) for _ in range(3)], max(1, int(mask.sum()))
    whole, split = tensor(arrays[0], grad=True), tensor(arrays[0], grad=True)
    loss(whole, *arrays[1:], mask, num_tokens=total).loss.backward()
    for part in partition(len(mask), seed):
        loss(split[torch.tensor(part)], *(x[part] for x in arrays[1:]), mask[part], num_tokens=total).loss.backward()
    assert_close(split.grad, whole.grad.numpy())


@check
@given(draw=smooth_numbers, mask=completion_masks(), which=st.integers(0, 2))
def test_what_lies_in_the_padding_changes_nothing(draw: Numbers, mask: np.ndarray, which: int) -> None:
    """NaN, infinities and huge numbers outside the mask: values and gradients stay to the bit, and are zero outside."""
    clean = [draw(*mask.shape) for _ in range(2)]
    dirty = [np.where(mask, x, draw.garbage(*mask.shape)) if which in (2, i) else x for i, x in enumerate(clean)]

    def run(arrays: list[np.ndarray]) -> tuple[list[Tensor], list[Tensor]]:
        inputs = [tensor(x, grad=True) for x in arrays]
        outputs = list(gae(*inputs, tensor(mask), gamma=0.9, lam=0.8))
        weights = [torch.arange(1.0, o.numel() + 1, dtype=o.dtype).view(o.shape) for o in outputs]
        return outputs, list(torch.autograd.grad(outputs, inputs, weights))

    for ours, expected in zip(run(dirty), run(clean), strict=True):
        for a, b in zip(ours, expected, strict=True):
            assert torch.isfinite(b).all()
            assert torch.equal(a, b)
            assert not a[~tensor(mask)].any()


def test_gradcheck() -> None:
    """PyTorch's own finite differences, away from the kinks."""
    draw = Numbers(5, None)
    mask = np.array([[True, True, False], [True, False, False]])
    inputs = [tensor(draw(2, 3), grad=True) for _ in range(3)]
    rest = [x.detach() for x in inputs[1:]]
    for loss in (policy_of, value_of):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, *rest, mask, num_tokens=3).loss, inputs[0])
