"""The key-value cache of a continuous batch: there is room for the next column, and rows come and go.

Used by `decoding`. All rows end in the same column, the newest; a shorter row begins further to the right. Differs from
`DynamicCache`, which copies every key and value at every token and cannot gain a row. Here a column is written in place, the
last row moves to where a row was removed, and a new prompt's keys and values are written beside the rows that are there.
Layers with a sliding window keep all their columns, because rows of different lengths share them (the model's mask hides the
columns outside the window).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

SPARE = 64  # extra columns when the buffers grow: the copy is made once in so many tokens


class RowLayer(DynamicLayer):
    """One layer: `keys` and `values` [rows, heads, columns, dim] are views of larger buffers."""

    keys: Tensor  # None in the base class until the first write
    values: Tensor

    def __init__(self, max_rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._max_rows = max_rows
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the next columns, [rows, heads, new, dim]; returns all of them."""
        new = key_states.shape[2]
        self._show(self.keys.shape[0], self.keys.shape[2] + new, like=(key_states, value_states))
        self.keys[:, :, -new:], self.values[:, :, -new:] = key_states, value_states
        return self.keys, self.values

    def add_rows(self, keys: Tensor, values: Tensor, width: int) -> None:
        """Add rows at the bottom: blocks [new rows, heads, longest, dim] that end in column `width`, as all rows do."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys[:0], values[:0]
        rows, longest = self.keys.shape[0], keys.shape[2]
        self._show(rows + keys.shape[0], width, like=(keys, values))
        self.keys[rows:, :, width - longest :], self.values[rows:, :, width - longest :] = keys, values

    def keep(self, moved: Tensor, removed: Tensor, rows: int) -> None:
        """Write the rows `moved` over the rows `removed`; `rows` rows remain."""
        if len(moved):
            for view in (self.keys, self.values):
                view[removed] = view[moved]
        self._show(rows, self.keys.shape[2])

    def realign(self, longest: int, width: int) -> None:
        """Move the last `longest` columns so that they end in column `width`."""
        last = [view[:, :, view.shape[2] - longest :].clone() for view in (self.keys, self.values)]
        self._show(self.keys.shape[0], width, like=last)
        self.keys[:, :, width - longest :], self.values[:, :, width - longest :] = last

    def _show(self, rows: int, width: int, *, like: Sequence[Tensor] = ()) -> None:
        """Set the views to `rows` and `width`. Buffers that are too small grow first; `like` are states of their type and shape."""
        if like and (not self._buffers or self._buffers[0].shape[2] < width or self._buffers[0].shape[0] < rows):
            views = (self.keys, self.values)
            self._buffers = [self._larger(view, states, rows, width) for view, states in zip(views, like, strict=True)]
        self.keys, self.values = (buffer[:rows, :, :width] for buffer in self._buffers)

    def _larger(self, view: Tensor, states: Tensor, rows: int, width: int) -> Tensor:
        """Zeros, not uninitialised memory: a masked column counts zero times its value, and zero times NaN is NaN."""
        _, heads, _, dim = states.shape
        buffer = states.new_zeros(max(rows, self._max_rows), heads, width + SPARE, dim)
        columns = min(view.shape[2], width)
        buffer[: view.shape[0], :, :columns] = view[:, :, :columns]
        return buffer


class RowCache(Cache):
    """A cache for up to `max_rows` rows that come and go, for models that keep nothing but keys and values."""

    layers: list[RowLayer]  # type: ignore[assignment]

    def __init__(self, max_rows: int) -> None:
        super().__init__(layers=[])
        self._max_rows = max_rows

    def add_rows(self, prompts: Cache, samples: int, width: int) -> None:
        """Add `samples` rows for each row of another cache (whose rows are left-padded or of one length)."""
        if not self.layers:
            self.layers = [RowLayer(self._max_rows) for _ in prompts.layers]
        others: list[Any] = prompts.layers
        for mine, theirs in zip(self.layers, others, strict=True):
            if theirs.keys is not None:  # a layer that shares another layer's keys has none of its own
                keys, values = (
                    x.repeat_interleave(samples, 0) if samples > 1 else x for x in (theirs.keys, theirs.values)
                )
                mine.add_rows(keys, values, width)

    def keep(self, indices: list[int]) -> list[int]:
        """Remove all rows but these; returns these in their new order. A row moves only to take the index of a removed one."""
        count = len(indices)
        staying = {i for i in indices if i < count}
        removed, moved = [i for i in range(count) if i not in staying], [i for i in indices if i >= count]
        row_at = dict(zip(removed, moved, strict=True))
        moves = torch.tensor([moved, removed], dtype=torch.long)
        for layer in self._filled():
            moves = moves.to(layer.keys.device)  # once, not a copy for each layer
            layer.keep(moves[0], moves[1], count)
        return [row_at.get(i, i) for i in range(count)]

    def realign(self, longest: int, width: int) -> None:
        """Remove columns that no row needs any more, or add some at the left, so that all rows end in column `width`."""
        for layer in self._filled():
            layer.realign(longest, width)

    def _filled(self) -> list[RowLayer]:
        return [layer for layer in self.layers if layer.is_initialized]


def flat_to_rows(flat: Cache, lengths: list[int]) -> None:
    """Turn the cache of prompts laid end to end, [1, heads, tokens, dim], into one of rows that end in the same column.

    The first columns of a shorter row hold what stood before it in the flat cache; the mask hides them.
    """
    width = max(lengths)
    ends = torch.tensor(lengths).cumsum(0)
    columns = (ends[:, None] - width + torch.arange(width)).clamp(min=0)
    layers: list[Any] = flat.layers
    for layer in layers:
        if layer.keys is not None:
            index = columns.to(layer.keys.device)
            layer.keys, layer.values = (x[0][:, index].transpose(0, 1) for x in (layer.keys, layer.values))


def only_keys_and_values(config: PretrainedConfig) -> bool:
    """Whether rows may come and go: not in a model that keeps other state too (convolutions, linear attention).

    A layer that holds nothing because it shares another layer's keys (Gemma 3n and 4) is fine, unless it is the first: the
    cache's length is read from the first layer.
    """
    layers = [type(layer) for layer in DynamicCache(config=config).layers]
    held = (DynamicLayer, DynamicSlidingWindowLayer)
    nothing = getattr(cache_utils, "DummyLayer", DynamicLayer)  # older versions leave such layers out
    return layers[0] in held and all(layer in (*held, nothing) for layer in layers)
