"""One SDPA call a segment: no token is padded, on any device, in any dtype, with dropout."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv

from rlhf.models.attention.layout import Layout, tokens_of
from rlhf.tokens.segments import Span


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    window: int | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """query [1, H, T, D]; key, value [1, H_kv, T, D]; returns [1, T, H, D]."""
    groups = query.shape[1] // key.shape[1]
    lengths = [span.length for span in layout.spans]
    pieces = (x.split(lengths, 2) for x in (query, repeat_kv(key, groups), repeat_kv(value, groups)))
    out = []
    for span, q, k, v in zip(layout.spans, *pieces, strict=True):
        hides = window is not None and window < span.prompt + max(span.completions)
        mask = layout.once(mask_of, span, window if hides else None)
        out.append(
            scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, is_causal=mask is None, scale=scaling)
        )
    return torch.cat(out, dim=2).transpose(1, 2).contiguous()


def mask_of(layout: Layout, span: Span, window: int | None) -> Tensor | None:
    """Who may look at whom inside a segment, [L, L] bool (True = may); None where plain causal attention is meant."""
    if len(span.completions) == 1 and window is None:
        return None
    index = torch.arange(span.start, span.start + span.length, device=layout.device)
    return layout.once(tokens_of).visible(index[:, None], index[None, :], window)
