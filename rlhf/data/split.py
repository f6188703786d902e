"""Train and test apart by a hash: all rows of one prompt on one side, whatever else is in the data. Used by `build`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf.data.blocks import Rows, texts_of, to_rows
from rlhf.errors import DataError
from rlhf.recipe.steps import SplitStep


def places(keys: Iterable[str], seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A place in [0, 1) for each key, by SHA-256 of the seed and the key: the same in every run, on every machine."""
    head = hashlib.sha256(f"{seed}\n".encode())
    out = []
    for key in keys:
        digest = head.copy()
        digest.update(key.encode())
        out.append(int.from_bytes(digest.digest()[:8], "big"))
    return np.array(out, dtype=np.uint64).astype(np.float64) / 2**64


def held_out(places: np.ndarray[Any, np.dtype[np.float64]], share: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows go to test: those whose place falls below `share`.

    A key's side does not depend on the other rows, nor on their order, so that added rows move none; except that
    each side gets at least one key. Raises DataError when there is only one key.
    """
    low, high = float(places.min()), float(places.max())
    if low == high:
        raise DataError(
            "split", "needs two different prompts (or groups, where it goes by those) to have two sides, there is 1"
        )
    test: np.ndarray[Any, np.dtype[np.bool_]] = places < share
    if not test.any():
        test = places == low
    return test & (places < high) if test.all() else test


def split_rows(rows: Rows, step: SplitStep | None, seed: int) -> tuple[dict[str, Rows], dict[str, Any] | None]:
    """The sides by name, and the step's report; without a step all rows are `train`."""
    if step is None:
        return {"train": rows}, None
    rows.needs(step.by, "split.by")
    keys = (key for block in rows.blocks([step.by]) for key in _keys(block, step.by))
    test = held_out(places(keys, seed), step.test)
    sides = {"train": rows.without(test), "test": rows.without(~test)}
    counts = {side: len(part) for side, part in sides.items()}
    assert sum(counts.values()) == len(rows)
    report = {"step": "split", "share": step.test, "by": step.by, "rows_in": len(rows), "rows_out": len(rows)}
    return sides, report | {"dropped": {}, **counts}


def _keys(block: pa.Table, column: str) -> list[str]:
    if block.column(column).null_count:
        row = next(row for row in to_rows(block) if (row.group if column == "group" else row.data.get(column)) is None)
        raise row.error("split.by: this row has no such value", column)
    keys: list[str] = texts_of(block.column(column)).to_pylist()
    return keys
