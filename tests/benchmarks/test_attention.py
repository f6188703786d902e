"""The candidates of `benchmarks.attention` compute what rlhf computes: else their times would say nothing."""

from __future__ import annotations

import torch

from benchmarks.attention import BUDGET, HEADS, KV_HEADS, SIZE, Attend, groups_of, layout_of, one_by_one, padded, runs


def with_gradients(attend: Attend, lengths: list[int]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    inputs = [torch.randn(1, heads, sum(lengths), SIZE, requires_grad=True) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    out = attend(*inputs, layout_of(lengths))
    return [out, *torch.autograd.grad(out.sin().sum(), inputs)]


def test_segments_of_one_length_in_one_call_give_the_same_bits() -> None:
    for found, expected in zip(with_gradients(runs, [37] * 5), with_gradients(one_by_one, [37] * 5), strict=True):
        assert torch.equal(found, expected)


def test_padded_groups_give_the_same_to_rounding() -> None:
    lengths = [30, 33, 7, 64, 31, 60]
    for found, expected in zip(with_gradients(padded, lengths), with_gradients(one_by_one, lengths), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_groups_stay_within_their_budget() -> None:
    lengths = [30, 33, 7, 64, 31, 60]
    groups = groups_of(lengths)
    assert groups == [[3, 5], [1, 4, 0], [2]]
    assert all(len(g) * lengths[g[0]] <= (1 + BUDGET) * sum(lengths[i] for i in g) for g in groups)
