"""Where the segments of one forward pass lie, and who may look at whom: the one definition behind every variant of attention.

A `Layout` is made once a batch, shared by all layers, and gone with the pass. What a variant derives from it (masks, offsets,
index tensors) is made when the first layer asks, and kept there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple

import torch
from torch import Tensor

from rlhf.tokens.segments import Span

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Layout:
    """The spans of a flat batch, end to end, and the device that the batch is on."""

    def __init__(self, spans: tuple[Span, ...], device: torch.device) -> None:
        self.spans = spans
        self.device = device
        self._made: dict[tuple[Any, ...], Any] = {}

    def once(self, make: Callable[[Layout, *Ts], T], *arguments: *Ts) -> T:
        """`make(layout, *arguments)`, made at the first call and the same object after it."""
        key = (make, *arguments)
        if key not in self._made:
            self._made[key] = make(self, *arguments)
        made: T = self._made[key]
        return made

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor made on the CPU, on the batch's device. A copy from pinned memory does not stop the host."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


@dataclass(frozen=True)
class Tokens:
    """What each token of the row is, [T] int64 each. Branch 0 is the prompt; a branch's positions go on where its prompt stopped."""

    segment: Tensor
    branch: Tensor
    position: Tensor

    def visible(self, query: Tensor, key: Tensor, window: int | Tensor | None) -> Tensor:
        """Whether the tokens `query` may look at the tokens `key` (indices into the row that broadcast), bool."""
        distance = self.position[query] - self.position[key]
        seen = (distance >= 0) & (self.segment[query] == self.segment[key])
        seen = seen & ((self.branch[query] == self.branch[key]) | (self.branch[key] == 0))
        return seen if window is None else seen & (distance < window)


def tokens_of(layout: Layout) -> Tokens:
    """Distances are in positions, not in the row."""
    pieces = [
        (segment, branch, span.prompt * (branch > 0), length)
        for segment, span in enumerate(layout.spans)
        for branch, length in enumerate((span.prompt, *span.completions))
    ]
    segment, branch, first, lengths = torch.tensor(pieces).T
    starts = lengths.cumsum(0) - lengths
    position = torch.arange(int(lengths.sum())) + (first - starts).repeat_interleave(lengths)
    return Tokens(
        layout.put(segment.repeat_interleave(lengths)),
        layout.put(branch.repeat_interleave(lengths)),
        layout.put(position),
    )


def pass_dtype(x: Tensor) -> torch.dtype:
    """The dtype that attention runs in: under autocast rotary embeddings leave queries and keys in float32.

    SDPA converts them by itself. A kernel that autocast does not know needs it done.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
