"""log softmax(W h / temperature)[target] for the scored positions only, without keeping [N, V] logits.

The vocabulary head is the widest matrix of a small model, and cross entropy over it the largest activation of any. So
the head runs on the scored positions alone, a chunk of rows at a time; the backward pass computes each chunk again. The
GEMMs run in the weights' precision, the softmax in float32; the weight's gradient is not computed where it is frozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 256 * 2**20  # of float32 logits; at least 512 rows, below which the GEMMs lose their speed


def _chunk_rows(vocabulary: int) -> int:
    return max(512, CHUNK_BYTES // (4 * vocabulary))


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
    ) -> Tensor:
        logprobs = hidden.new_empty(hidden.shape[0], dtype=_softmax_dtype(hidden))
        normaliser = torch.empty_like(logprobs)
        for rows in _row_chunks(hidden.shape[0], weight.shape[0]):
            logits = _logits(hidden[rows], weight, bias, temperature)
            normaliser[rows] = logits.logsumexp(-1)
            logprobs[rows] = logits.gather(1, targets[rows, None]).squeeze(1) - normaliser[rows]
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.temperature = temperature
        return logprobs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=_softmax_dtype(hidden)) if ctx.needs_input_grad[1] else None
        grad_bias = (
            torch.zeros_like(bias, dtype=_softmax_dtype(hidden))
            if bias is not None and ctx.needs_input_grad[2]
            else None
        )
        for rows in _row_chunks(hidden.shape[0], weight.shape[0]):
            # d logprob / d logits = (onehot - softmax) / temperature
            grad_logits = _logits(hidden[rows], weight, bias, ctx.temperature).sub_(normaliser[rows, None]).exp_()
            scale = grad[rows, None] / ctx.temperature
            grad_logits.mul_(-scale).scatter_add_(1, targets[rows, None], scale)
            cast = grad_logits.to(weight.dtype)
            grad_hidden[rows] = cast @ weight
            if grad_weight is not None:
                grad_weight += cast.t() @ hidden[rows]
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(weight.dtype),
            None,
            None,
        )


def _softmax_dtype(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def _row_chunks(rows: int, vocabulary: int) -> list[slice]:
    size = _chunk_rows(vocabulary)
    return [slice(start, start + size) for start in range(0, rows, size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).to(_softmax_dtype(hidden))
    return logits if temperature == 1.0 else logits.div_(temperature)


def head_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Log-probability of each target under the head's softmax: hidden [N, H], weight [V, H], targets [N] -> [N].

    Under autocast the GEMMs run in its dtype; the result is float32 (float64 for float64 inputs).
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    else:
        dtype = weight.dtype
    bias = None if bias is None else bias.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        result: Tensor = _HeadLogprobs.apply(hidden.to(dtype), weight.to(dtype), bias, targets, temperature)  # type: ignore[no-untyped-call]
    return result


def logits_logprobs(logits: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The same from finished logits: logits [..., V], targets [...] -> [...]. For models with more than a linear head."""
    logits = logits.to(_softmax_dtype(logits)) / temperature
    return logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)
