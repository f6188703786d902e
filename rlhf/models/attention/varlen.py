"""One call of a flash kernel for a whole batch, shared prompts included. On CUDA, in 16 bits.

The kernel takes sequences of unequal length, laid end to end, with keys of their own; where a sequence has fewer queries than keys, its
queries are the last ones. So a segment is one sequence for each of its completions:

    sequence     queries                        keys
    the first    prompt and first completion    the same tokens
    another      the completion                 prompt and completion, gathered

The queries are then the row as it lies, and so is the output. The backward pass of the gathering adds up what the completions
ask of their prompt, in float32.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers.integrations.sdpa_attention import repeat_kv

from rlhf.models.attention.layout import Layout, pass_dtype

# torch 2.11 has no such argument, and says nothing of fewer heads for keys: it is given as many as the queries have.
GROUPED_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters


@dataclass(frozen=True)
class Sequences:
    """A batch as N sequences for the kernel."""

    query_offsets: Tensor  # [N + 1] int32: where each sequence's queries begin in the row
    key_offsets: Tensor  # [N + 1] int32: where its keys begin in `keys`
    keys: Tensor | None  # [K] int64: which token of the row each key is; None where the keys are the row as it lies
    most_queries: int
    most_keys: int


def sequences_of(layout: Layout) -> Sequences:
    """Made of the spans, without a look at the device."""
    queries: list[int] = []
    lengths: list[int] = []
    keys: list[int] = []
    for span in layout.spans:
        begin = span.start + span.prompt
        for branch, length in enumerate(span.completions):
            queries.append(length if branch else span.prompt + length)
            lengths.append(span.prompt + length)
            keys += [*range(span.start, span.start + span.prompt), *range(begin, begin + length)]
            begin += length
    gathered = None if lengths == queries else layout.put(torch.tensor(keys))
    return Sequences(_offsets(queries, layout), _offsets(lengths, layout), gathered, max(queries), max(lengths))


def _offsets(lengths: list[int], layout: Layout) -> Tensor:
    return layout.put(torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32))


def takes(device: torch.device, dtype: torch.dtype, *shapes: tuple[int, int]) -> bool:
    """Whether the kernel runs on this device in this dtype; `shapes` are the heads and the head size of query, key and value."""
    if device.type != "cuda" or torch.version.hip or not torch.backends.cuda.is_flash_attention_available():
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    sizes = {size for _, size in shapes}
    # between 192 and 256 some cards have no backward pass
    return dtype in (torch.float16, torch.bfloat16) and len(sizes) == 1 and sizes <= {*range(8, 193, 8), 256}


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, window: int | None, scaling: float | None
) -> Tensor:
    """query [1, H, T, D]; key, value [1, H_kv, T, D]; returns [1, T, H, D]."""
    sequences = layout.once(sequences_of)
    if not GROUPED_HEADS:
        repeats = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    dtype = pass_dtype(query)
    q, k, v = (x[0].to(dtype).transpose(0, 1) for x in (query, key, value))
    if sequences.keys is not None:
        k, v = _gather(k, sequences.keys), _gather(v, sequences.keys)
    # ours are keys at a distance under `window`, the kernel's at most this far to the left; -1 is no window
    left = window - 1 if window is not None and window < sequences.most_keys else -1
    heads: dict[str, Any] = {"enable_gqa": True} if GROUPED_HEADS else {}
    out = varlen_attn(
        q,
        k,
        v,
        sequences.query_offsets,
        sequences.key_offsets,
        sequences.most_queries,
        sequences.most_keys,
        scale=scaling,
        window_size=(left, 0),
        **heads,
    )
    assert isinstance(out, Tensor)
    return out[None]


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """In float32, so that its backward pass sums in float32."""
    return x.float().index_select(0, index).to(x.dtype)
