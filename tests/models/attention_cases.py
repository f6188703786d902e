"""Random layouts for the variants of attention, plain implementations of what their kernels promise, and the comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from rlhf.models.attention import per_segment
from rlhf.models.attention.layout import Layout
from rlhf.tokens.segments import Span


def spans_of(shapes: list[tuple[int, ...]]) -> tuple[Span, ...]:
    """Segments end to end; a shape is the prompt's length and each completion's."""
    spans, start = [], 0
    for prompt, *completions in shapes:
        spans.append(Span(start, prompt, tuple(completions)))
        start += spans[-1].length
    return tuple(spans)


def layouts(longest: int = 9, segments: int = 5) -> st.SearchStrategy[tuple[Span, ...]]:
    """One to five segments, each of a prompt and one to four completions; a decoder's prefill has completions of no tokens."""
    length = st.integers(1, longest)
    segment = st.tuples(length, st.lists(length, min_size=1, max_size=4)).map(lambda s: (s[0], *s[1]))
    prefill = length.map(lambda n: (n, 0))
    rows = st.lists(segment, min_size=1, max_size=segments)
    return (rows | st.lists(prefill, min_size=1, max_size=segments)).map(spans_of)


def inputs_for(
    spans: tuple[Span, ...], heads: int, kv_heads: int, size: int = 8, device: str = "cpu", dtype: Any = torch.float32
) -> list[Tensor]:
    """query [1, H, T, D], key and value [1, H_kv, T, D], as a model makes them: views of [1, T, H * D]."""
    generator = torch.Generator().manual_seed(0)
    total = sum(span.length for span in spans)
    made = (torch.randn(1, total, n, size, generator=generator) for n in (heads, kv_heads, kv_heads))
    return [x.to(device, dtype).transpose(1, 2).requires_grad_() for x in made]


def results(attend: Callable[..., Tensor], inputs: list[Tensor], spans: tuple[Span, ...], **how: Any) -> list[Tensor]:
    """The output and the three gradients of a loss that weighs every number differently."""
    out = attend(*inputs, Layout(spans, inputs[0].device), **how)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    gradients = torch.autograd.grad((out.float().sin() * weights).sum(), inputs)
    return [x.detach().float() for x in (out, *gradients)]


def by_segment(*arguments: Any, **how: Any) -> Tensor:
    """The path that the others are held against."""
    return per_segment.attend(*arguments, **how, dropout=0.0)


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` promises, sequence by sequence, with its demands on what it is given."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert query.dtype == key.dtype == value.dtype
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert (cu_seq_q[-1], cu_seq_k[-1]) == (len(query), len(key)) and len(key) == len(value)
    assert max_q == cu_seq_q.diff().max() and max_k == cu_seq_k.diff().max()
    assert window_size[1] == 0, "causal"
    assert enable_gqa or query.shape[1] == key.shape[1]
    repeats = query.shape[1] // key.shape[1]
    out = []
    ends = zip(
        cu_seq_q.tolist()[:-1], cu_seq_q.tolist()[1:], cu_seq_k.tolist()[:-1], cu_seq_k.tolist()[1:], strict=True
    )
    for q0, q1, k0, k1 in ends:
        q, k, v = query[q0:q1], key[k0:k1], value[k0:k1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * (scale or q.shape[-1] ** -0.5)
        behind = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0) - torch.arange(k1 - k0)
        hidden = behind < 0 if window_size[0] < 0 else (behind < 0) | (behind > window_size[0])
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(out)


def plain_flex(
    query: Tensor, key: Tensor, value: Tensor, *, block_mask: BlockMask, scale: float | None, enable_gqa: bool
) -> Tensor:
    """FlexAttention as a kernel does it, which skips blocks that are not listed; torch's own has no backward pass on a CPU."""
    index = torch.arange(query.shape[2])
    visible = block_mask.mask_mod(index[:1], index[:1], index[:, None], index)
    listed = block_mask.to_dense()[0, 0].bool()
    for dimension in (0, 1):
        listed = listed.repeat_interleave(block_mask.BLOCK_SIZE[dimension], dimension)
    mask = visible & listed[: len(index), : len(index)]
    return scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=enable_gqa)
