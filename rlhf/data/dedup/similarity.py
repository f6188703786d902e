"""Compiled: the exact Jaccard similarity of two texts' sets of shingle keys, with no memory allocated and very few branches.

Half of the cost of a near-duplicate is branches that the processor guesses wrong. Three things make them few. The hash table is an eighth
full at most; it holds 4-byte numbers of keys, and fits into the first-level cache. An empty slot and a slot with the same key are one case. Keys
that the text does not have (*foreign* keys) are first collected, and then counted. When a candidate has so many foreign keys that it
cannot reach the threshold, the comparison stops: an unrelated text costs a quarter of a match.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup.jit import Int, jit
from rlhf.data.dedup.sketch import MIX

CHUNK = 64  # keys looked up between two counts of the foreign ones
_1, _NONE = np.uint64(1), np.uint32(0)


@jit
def table_bits(count: Int) -> Int:
    """The base-2 logarithm of the size of a table that `count` keys fill to an eighth at most."""
    bits = 4
    while (1 << bits) < 8 * count:
        bits += 1
    return bits


@jit
def make_set(keys: NDArray[np.uint64], n: Int, heads: NDArray[np.uint32]) -> Int:
    """Clear the front of `heads`, and enter keys[1 : n + 1]. keys[0] is 0, no other key is. Returns how many are distinct."""
    bits = table_bits(n)
    heads[: 1 << bits] = _NONE
    return _enter(keys, 1, n + 1, heads, bits)


@jit
def _enter(keys: NDArray[np.uint64], start: Int, stop: Int, heads: NDArray[np.uint32], bits: Int) -> Int:
    """Enter keys[start:stop]. Returns how many are new. A slot holds the number of a key; 0 is an empty slot."""
    added = 0
    fresh = keys[start:stop]
    for i in range(len(fresh)):
        slot = _find(keys, fresh[i], heads, bits)
        head = heads[slot]
        heads[slot] = np.uint32(start + i) if head == _NONE else head
        added += head == _NONE
    return added


@jit
def _find(keys: NDArray[np.uint64], key: np.uint64, heads: NDArray[np.uint32], bits: Int) -> Any:
    """The slot of a key, or the empty slot where it belongs."""
    mask = np.uint64((1 << bits) - 1)
    slot = (key * MIX) >> np.uint64(64 - bits)
    head = heads[slot]
    while (head != _NONE) & (
        keys[head] != key
    ):  # not `and`: this is one branch, and it nearly always goes the same way
        slot = (slot + _1) & mask
        head = heads[slot]
    return slot


@jit
def similarity(
    own: NDArray[np.uint64],
    own_shingles: Int,
    own_distinct: Int,
    heads: NDArray[np.uint32],
    counted: NDArray[np.uint32],
    mark: Int,
    keys: NDArray[np.uint64],
    n: Int,
    foreign: NDArray[np.uint64],
    foreign_heads: NDArray[np.uint32],
    threshold: float,
) -> float:
    """Jaccard similarity of the set of `own` and the set of keys[:n]; -1 below `threshold`.

    `counted` has a number for each own key. It is set to `mark` when the key is found; no call before had this mark with this set.
    `foreign` and `foreign_heads` are working memory for the keys that are not in the set.
    """
    most = int(own_distinct * (1.0 / threshold - 1.0) + 1e-6 * own_distinct + 1e-6)
    bits, foreign_bits = table_bits(own_shingles), table_bits(min(most, n) + CHUNK)
    foreign_heads[: 1 << foreign_bits] = _NONE
    shared, strange, met = 0, 0, _1
    this = np.uint32(mark)
    for start in range(0, n, CHUNK):
        before = met
        chunk = keys[start : min(start + CHUNK, n)]
        for i in range(len(chunk)):
            head = heads[_find(own, chunk[i], heads, bits)]
            shared += (head != _NONE) & (counted[head] != this)
            counted[head] = this
            foreign[met] = chunk[i]
            met += np.uint64(head == _NONE)
        strange += _enter(foreign, np.int64(before), np.int64(met), foreign_heads, foreign_bits)
        if strange > most:
            return -1.0
    found = shared / (own_distinct + strange)
    return found if found >= threshold else -1.0
