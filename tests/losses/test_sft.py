"""The loss of supervised fine-tuning against its oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.losses import (
    LossOutput,
    sft_loss,
)
from tests.losses import oracle
from tests.losses.support import (
    Numbers,
    any_masks,
    assert_adds_up,
    assert_gradient,
    assert_output,
    check,
    masks,
    numbers,
    partition,
    seeds,
    tensor,
)


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


@check
@given(numbers, any_masks(), seeds)
def test_sft_adds_up_over_microbatches(draw: Numbers, mask: np.ndarray, seed: int) -> None:
    logprobs = -np.abs(draw(int(mask.sum()) + 1))
    parts = partition(len(logprobs), seed)
    assert_adds_up(
        lambda i: sft_loss(logprobs=tensor(logprobs[i]), num_tokens=len(logprobs)), np.arange(len(logprobs)), parts
    )
