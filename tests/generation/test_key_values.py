"""The cache of rows against a plain one: a list of rows, each a list of columns."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.generation.key_values import SPARE, RowCache, flat_to_rows

HEADS, DIM, LAYERS = 2, 3, 2


def block(rows: int, columns: int, first: int) -> Tensor:
    """Numbers that occur once, [rows, heads, columns, dim]."""
    return torch.arange(first, first + rows * HEADS * columns * DIM, dtype=torch.float32).reshape(
        rows, HEADS, columns, DIM
    )


def layered(keys: Tensor) -> SimpleNamespace:
    """As a cache of prompts: layer l holds keys + l/4 and their negatives as values; the last layer holds none."""
    layers = [SimpleNamespace(keys=keys + i / 4, values=-keys - i / 4) for i in range(LAYERS)]
    return SimpleNamespace(layers=[*layers, SimpleNamespace(keys=None, values=None)])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_that_come_and_go_keep_what_is_theirs(data: st.DataObject) -> None:
    cache, width, unique = RowCache(max_rows=4), 0, 0
    rows: list[Tensor] = []  # what each row holds, [heads, its own columns, dim]
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["add", "token", "keep"])) if rows else "add"
        if action == "add":
            lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=2))
            samples = data.draw(st.integers(1, 2))
            new = block(len(lengths), max(lengths), unique)
            longest = max((row.shape[1] for row in rows), default=0)
            target = max(longest, *lengths)
            if rows and target != width:
                cache.realign(longest, target)
            width = target
            cache.add_rows(layered(new), samples, width)  # type: ignore[arg-type]
            for one, length in zip(new, lengths, strict=True):
                rows += [one[:, max(lengths) - length :]] * samples
            unique += new.numel()
        elif action == "token":
            new = block(len(rows), 1, unique)
            for i in range(LAYERS):
                cache.update(new + i / 4, -new - i / 4, i)
            rows = [torch.cat([row, token], 1) for row, token in zip(rows, new, strict=True)]
            width, unique = width + 1, unique + new.numel()
        else:
            kept = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=len(rows) - 1)))
            order = cache.keep(kept)
            assert sorted(order) == kept
            rows = [rows[i] for i in order]
        for i in range(LAYERS):
            keys, values = cache.layers[i].keys, cache.layers[i].values
            assert keys.shape == (len(rows), HEADS, width, DIM)
            for row, key, value in zip(rows, keys, values, strict=True):
                assert torch.equal(key[:, width - row.shape[1] :], row + i / 4)
                assert torch.equal(value[:, width - row.shape[1] :], -row - i / 4)
        assert cache.get_seq_length() == (width if rows else 0)
        assert not cache.layers[LAYERS].is_initialized


def test_a_token_is_written_in_place() -> None:
    cache = RowCache(max_rows=2)
    cache.add_rows(layered(block(2, 3, 0)), 1, 3)  # type: ignore[arg-type]
    places = set()
    for _ in range(SPARE):
        cache.update(block(2, 1, 0), block(2, 1, 0), 0)
        places.add(cache.layers[0].keys.data_ptr())
    assert len(places) == 1


def test_columns_that_no_row_needs_are_no_numbers_to_fear() -> None:
    """Attention gives a masked column the weight zero, and zero times NaN would be NaN."""
    cache = RowCache(max_rows=3)
    cache.add_rows(layered(block(1, 5, 0)), 1, 5)  # type: ignore[arg-type]
    cache.add_rows(layered(block(1, 2, 0)), 1, 5)  # type: ignore[arg-type]
    assert torch.isfinite(cache.layers[0].keys).all()


def test_prompts_laid_end_to_end_become_rows() -> None:
    lengths = [2, 4, 1]
    flat = block(1, sum(lengths), 0)
    cache = layered(flat)
    flat_to_rows(cache, lengths)  # type: ignore[arg-type]
    for layer, sign in ((cache.layers[0].keys, 1), (cache.layers[0].values, -1)):
        assert layer.shape == (3, HEADS, 4, DIM)
        for row, (start, end) in zip(layer, ((0, 2), (2, 6), (6, 7)), strict=True):
            assert torch.equal(row[:, 4 - (end - start) :], sign * flat[0, :, start:end])
