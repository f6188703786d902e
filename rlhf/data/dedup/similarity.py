"""Compiled: the exact Jaccard similarity of two texts' sets of shingle keys, in tables that are cleared and used again.

A candidate is given up as soon as too many of its shingles are foreign to the text for any outcome to reach the threshold:
a stranger costs a quarter of a match.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup.jit import jit
from rlhf.data.dedup.sketch import MIX

_0 = np.uint64(0)


@jit
def table_bits(count: int) -> int:
    """The logarithm of the size of a table that `count` keys fill at most half."""
    bits = 4
    while (1 << bits) < 2 * count:
        bits += 1
    return bits


@jit
def make_set(keys: NDArray[np.uint64], n: int, own: NDArray[np.uint64], counted: NDArray[np.uint32]) -> int:
    """Put keys[:n] (none is 0) into the cleared front of `own`; how many are distinct. `counted` is cleared with it."""
    bits = table_bits(n)
    own[: 1 << bits] = _0
    counted[: 1 << bits] = np.uint32(0)
    distinct = 0
    for i in range(n):
        slot, there = _look(own, bits, keys[i])
        if not there:
            own[slot] = keys[i]
            distinct += 1
    return distinct


@jit
def similarity(
    own: NDArray[np.uint64],
    own_shingles: int,
    own_distinct: int,
    counted: NDArray[np.uint32],
    mark: int,
    keys: NDArray[np.uint64],
    n: int,
    others: NDArray[np.uint64],
    threshold: float,
) -> float:
    """Jaccard similarity of the set `own` (made of `own_shingles` keys) and that of keys[:n]; -1 where it is below `threshold`.

    `mark` is a number not used before with this set; `others` is room for the keys that are not in it.
    """
    own_bits, bits = table_bits(own_shingles), table_bits(n)
    others[: 1 << bits] = _0
    shared, foreign = 0, 0
    most = own_distinct * (1.0 / threshold - 1.0) + 1e-6 * own_distinct + 1e-6
    for i in range(n):
        slot, there = _look(own, own_bits, keys[i])
        if there:
            shared += counted[slot] != mark
            counted[slot] = mark
            continue
        slot, there = _look(others, bits, keys[i])
        if not there:
            others[slot] = keys[i]
            foreign += 1
            if foreign > most:
                return -1.0
    found = shared / (own_distinct + foreign)
    return found if found >= threshold else -1.0


@jit
def _look(table: NDArray[np.uint64], bits: int, key: np.uint64) -> tuple[int, bool]:
    """The slot of a key, or the empty one where it would go, and whether it is there."""
    mask = (1 << bits) - 1
    slot = np.int64((key * MIX) >> np.uint64(64 - bits))
    while table[slot] != _0:
        if table[slot] == key:
            return slot, True
        slot = (slot + 1) & mask
    return slot, False
