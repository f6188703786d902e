"""The chunked head against the plain log-softmax, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf.models import logprobs
from rlhf.models.logprobs import head_logprobs, logits_logprobs


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    return logits.log_softmax(-1)[torch.arange(len(targets)), targets]


def inputs(rows: int, dtype: torch.dtype, bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 16, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, dtype=dtype, requires_grad=True)
    offsets = torch.randn(50, generator=generator, dtype=dtype, requires_grad=True) if bias else None
    return hidden, weight, offsets, torch.randint(50, (rows,), generator=generator)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_over_several_chunks(
    bias: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "_chunk_rows", lambda vocabulary: 7)  # 20 rows: chunks of 7, 7, 6
    results = []
    for function in (head_logprobs, plain):
        hidden, weight, offsets, targets = inputs(20, torch.float64, bias)
        if function is plain:
            value = plain(hidden, weight, offsets, targets, temperature)
        else:
            value = head_logprobs(hidden, weight, offsets, targets, temperature=temperature)
        (value * torch.linspace(-1, 2, 20, dtype=torch.float64)).sum().backward()
        results.append([value, hidden.grad, weight.grad, *([offsets.grad] if offsets is not None else [])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    hidden, weight, _, targets = inputs(5, torch.float64, False)
    assert torch.autograd.gradcheck(lambda h, w: head_logprobs(h, w, None, targets, temperature=1.3), (hidden, weight))


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, _, targets = inputs(5, torch.float32, False)
    weight.requires_grad_(False)
    head_logprobs(hidden, weight, None, targets).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0


def test_finished_logits_give_the_same() -> None:
    hidden, weight, _, targets = inputs(6, torch.float64, False)
    torch.testing.assert_close(
        logits_logprobs(hidden @ weight.T, targets, temperature=0.5),
        head_logprobs(hidden, weight, None, targets, temperature=0.5),
    )


def test_bfloat16_is_close_and_float32_out() -> None:
    hidden, weight, _, targets = inputs(40, torch.float32, False)
    exact = plain(hidden, weight, None, targets, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = head_logprobs(hidden, weight, None, targets)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_fewer_columns_than_rows_and_a_chunk_that_depends_on_the_vocabulary(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """11 rows of 4 numbers over 6 words: no size equals another, so none can stand in another's place."""
    asked: list[int] = []
    monkeypatch.setattr(logprobs, "_chunk_rows", lambda vocabulary: asked.append(vocabulary) or 3)
    generator = torch.Generator().manual_seed(0)
    weight, targets = torch.randn(6, 4, generator=generator), torch.randint(6, (11,), generator=generator)
    rows = torch.randn(11, 4, generator=generator)
    results = []
    for function in (head_logprobs, plain):
        hidden = rows.clone().requires_grad_()
        options = {"temperature": temperature} if function is head_logprobs else {}
        out = function(hidden, weight, None, targets, *(() if options else (temperature,)), **options)
        out.square().sum().backward()
        results.append((out.detach(), hidden.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert set(asked) == {6}


def test_a_chunk_holds_256_mebibytes_of_logits_and_at_least_512_rows() -> None:
    assert logprobs._chunk_rows(1000) == 67_108  # 268,435,456 bytes / 4 bytes / 1,000 words
    assert logprobs._chunk_rows(262_144) == logprobs._chunk_rows(1_000_000) == 512


def test_finished_logits_of_any_shape_at_temperature_one() -> None:
    logits, targets = (
        torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[0, 4, 2], [1, 1, 3]]),
    )
    expected = torch.stack([torch.stack([row[t] for row, t in zip(*pair, strict=True)])
                            for pair in zip(logits.log_softmax(-1), targets, strict=True)])  # fmt: skip
    torch.testing.assert_close(logits_logprobs(logits, targets), expected)
