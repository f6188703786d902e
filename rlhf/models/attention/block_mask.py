"""FlexAttention with a block mask over the whole row: one compiled call a layer. On CUDA, for what flash refuses (float32, odd head sizes).

Blocks are listed from the spans, without a mask of [T, T]: a block of queries looks at the blocks from the start of its first
token's segment up to itself, and `Tokens.visible` decides inside them. Whether the kernel compiles on a card is not to be known without
trying: it is tried once for each shape of heads, on small batches, and held against SDPA.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from rlhf.models.attention import per_segment
from rlhf.models.attention.layout import Layout, pass_dtype, tokens_of
from rlhf.tokens.segments import Span

BLOCK = 128  # tokens

log = logging.getLogger(__name__)


@cache
def compiled() -> Callable[..., Any]:
    """Compiled for any number of tokens."""
    return torch.compile(flex_attention, dynamic=True)


def block_mask_of(layout: Layout, window: int | None) -> BlockMask:
    """Which blocks of keys each block of queries looks at, and who may look at whom inside them."""
    tokens = layout.once(tokens_of)
    starts = torch.tensor([span.start for span in layout.spans])
    total = layout.spans[-1].start + layout.spans[-1].length
    first = torch.arange(0, total, BLOCK)  # the first token of each block
    lowest = starts[torch.searchsorted(starts, first, right=True) - 1] // BLOCK
    blocks = torch.arange(len(first))
    counts = blocks - lowest + 1
    indices = (lowest[:, None] + blocks).clamp(max=len(first) - 1)
    # a tensor, also where there is no window: with another number, or with none, the kernel would be compiled again
    reach = layout.put(torch.tensor(total if window is None else window))

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return tokens.visible(query, key, reach)

    return BlockMask.from_kv_blocks(
        layout.put(counts.int())[None, None],
        layout.put(indices.int())[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(total, total),
    )


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, window: int | None, scaling: float | None
) -> Tensor:
    """query [1, H, T, D]; key, value [1, H_kv, T, D]; returns [1, T, H, D]."""
    dtype = pass_dtype(query)
    q, k, v = (x.to(dtype) for x in (query, key, value))
    mask = layout.once(block_mask_of, window)
    out: Tensor = compiled()(q, k, v, block_mask=mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


def takes(device: torch.device, dtype: torch.dtype, *shapes: tuple[int, int]) -> bool:
    """Whether it runs on this device in this dtype; `shapes` are the heads and the head size of query, key and value."""
    return device.type == "cuda" and agrees(device, dtype, *shapes)


@cache
def agrees(device: torch.device, dtype: torch.dtype, *shapes: tuple[int, int]) -> bool:
    """Whether it compiles, and gives what SDPA gives on batches of three lengths, with a window and without."""
    trials = [
        (Layout((Span(0, 100, (60, 50)), Span(210, 1, (90,))), device), 70),
        (Layout((Span(0, 30, (100,)), Span(130, 200, (70, 40))), device), None),
        (Layout((Span(0, 20, (30, 40)),), device), None),  # one block is compiled by itself
    ]
    try:
        apart = [_distance_to_sdpa(layout, window, dtype, shapes) for layout, window in trials]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler and its tools may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    else:
        if all(x <= (1e-4 if dtype == torch.float32 else 3e-2) for x in apart):
            return True
        reason = f"it differs from SDPA by {max(apart):.1e} (relative)"
    log.warning("attention takes one call a segment: FlexAttention in %s: %s", dtype, reason)
    return False


def _distance_to_sdpa(
    layout: Layout, window: int | None, dtype: torch.dtype, shapes: tuple[tuple[int, int], ...]
) -> float:
    """The largest relative difference in the result and its gradients."""
    total = sum(span.length for span in layout.spans)
    numbers = torch.arange(total, device=layout.device)[:, None]
    inputs = []
    for heads, size in shapes:  # made without the random generator, which is the run's
        x = (numbers * torch.arange(1, heads * size + 1, device=layout.device)).sin().view(1, total, heads, size)
        inputs.append(x.to(dtype).transpose(1, 2).requires_grad_())

    def with_gradients(out: Tensor) -> list[Tensor]:
        return [x.detach().float() for x in (out, *torch.autograd.grad(out.float().sin().sum(), inputs))]

    q, k, v = inputs
    with torch.enable_grad(), torch.autocast(layout.device.type, enabled=False):
        found = with_gradients(attend(q, k, v, layout, window=window, scaling=None))
        exact = with_gradients(per_segment.attend(q, k, v, layout, window=window, scaling=None, dropout=0.0))
    return float(torch.stack([(f - e).norm() / e.norm() for f, e in zip(found, exact, strict=True)]).max())
