"""Attention over segments: each branch of a segment sees its prompt and itself, nothing else.

Registered with transformers under one name, so that any model that looks its attention up there (Llama, Qwen, GPT-2,
Gemma 3, ...) takes a flat batch: `body(input_ids, position_ids, segments=spans)`. Without `segments` the same model runs
ordinary SDPA, so generation needs no switch.

One SDPA call a segment beats one block mask over the flat row on CPU, and no token is ever padded. A model whose
attention is not looked up there (or that does more to its logits than one linear head) takes the padded path; `batching` finds out
by comparing the two on a small batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.tokens.segments import PaddedBatch, Span

NAME = "rlhf_segments"


class Layout:
    """Where the segments of one forward pass lie, and their masks: made once, shared by all layers, gone with the pass."""

    def __init__(self, spans: tuple[Span, ...]) -> None:
        self.spans = spans
        self.lengths = [span.length for span in spans]
        self._masks: dict[tuple[Span, int | None], Tensor] = {}

    def mask(self, span: Span, window: int | None, device: torch.device) -> Tensor | None:
        """Who may look at whom inside a segment, [L, L] bool (True = may); None where plain causal attention is meant."""
        if window is not None and window >= span.prompt + max(span.completions):
            window = None
        if len(span.completions) == 1 and window is None:
            return None
        if (span, window) not in self._masks:
            self._masks[span, window] = _branch_mask(span, window, device)
        return self._masks[span, window]


def _branch_mask(span: Span, window: int | None, device: torch.device) -> Tensor:
    """Distances are in positions, not in the row: a branch goes on where its prompt stopped."""
    lengths = torch.tensor([span.prompt, *span.completions], device=device)
    branch = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
    index = torch.arange(span.length, device=device)
    starts = lengths.cumsum(0) - lengths
    position = index - starts[branch] + span.prompt * (branch > 0)
    distance = position[:, None] - position[None, :]
    visible = (distance >= 0) & ((branch[:, None] == branch[None, :]) | (branch[None, :] == 0))
    return visible if window is None else visible & (distance < window)


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Layout | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [1, H, T, D]; key, value [1, H_kv, T, D]; returns [1, T, H, D]. SDPA where no segments are given.

    Raises NotImplementedError for attention sinks (`s_aux`), which SDPA would leave out without a word.
    """
    if s_aux is not None:
        raise NotImplementedError("its attention has sinks")
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    out = []
    pieces = (x.split(segments.lengths, 2) for x in (query, key, value))
    for span, q, k, v in zip(segments.spans, *pieces, strict=True):
        mask = segments.mask(span, sliding_window, query.device)
        out.append(
            scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, is_causal=mask is None, scale=scaling)
        )
    return torch.cat(out, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, segment_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_attention(model: PreTrainedModel, implementation: str | None = NAME) -> str | None:
    """Make every part of the model look its attention up under this name (composite models have nested configs).

    Returns the name that was in force.
    """
    before: str | None = model.config._attn_implementation
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            config._attn_implementation = implementation
    return before


def padded_inputs(padded: PaddedBatch) -> dict[str, Any]:
    """What a model is called with for a padded batch."""
    return {
        "input_ids": padded.input_ids,
        "attention_mask": padded.attention_mask,
        "position_ids": padded.position_ids,
        "use_cache": False,
    }


def segment_inputs(input_ids: Tensor, position_ids: Tensor, spans: tuple[Span, ...]) -> dict[str, Any]:
    """What the body is called with for a flat batch.

    The 4-D mask is a token: it stops transformers from reading each restart of `position_ids` as a new document and
    building a mask of its own (which would hide the prompt from every branch but the first). It is never looked at.
    """
    return {
        "input_ids": input_ids[None],
        "position_ids": position_ids[None],
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device),
        "segments": Layout(spans),
        "use_cache": False,
    }
