"""Attention over segments: each branch of a segment sees its prompt and itself, nothing else.

Registered with transformers under one name, so that any model that looks its attention up there (Llama, Qwen, GPT-2,
Gemma 3, ...) takes a flat batch: `body(input_ids, position_ids, segments=spans)`. Without `segments` the same model runs
ordinary SDPA, so generation needs no switch.

    varlen        one call of a flash kernel for the whole batch: CUDA in 16 bits
    block_mask    one call of FlexAttention: CUDA, for dtypes and head sizes that the flash kernel refuses
    per_segment   one SDPA call a segment: CPUs and other devices, dropout, and where the others do not run

No token is padded by any of them. On a CPU one call for many segments is not faster than one for each (docs/results.md). A model whose
attention is not looked up there (or that does more to its logits than one linear head) takes the padded path; `batching` finds out
by comparing the two on a small batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.models.attention import block_mask, per_segment, varlen
from rlhf.models.attention.layout import Layout, pass_dtype
from rlhf.tokens.segments import PaddedBatch, Span

NAME = "rlhf_segments"


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
    return _attend(query, key, value, segments, sliding_window, scaling, dropout), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    window: int | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """By the fastest variant that takes these tensors. Only SDPA knows dropout."""
    if dropout == 0.0:
        device, dtype = query.device, pass_dtype(query)
        shapes = [(x.shape[1], x.shape[3]) for x in (query, key, value)]
        if varlen.takes(device, dtype, *shapes):
            return varlen.attend(query, key, value, layout, window=window, scaling=scaling)
        if block_mask.takes(device, dtype, *shapes):
            return block_mask.attend(query, key, value, layout, window=window, scaling=scaling)
    return per_segment.attend(query, key, value, layout, window=window, scaling=scaling, dropout=dropout)


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
        "segments": Layout(spans, input_ids.device),
        "use_cache": False,
    }
