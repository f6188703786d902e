"""Compiled: the index of kept texts by their band hashes.

Each band has one open-addressing table. A slot has 64 bits: 32 bits of the band's hash, and either the place of the one kept text with
that hash, or the first node of a chain of such texts. With chains, a bucket of many texts (with the same beginning, for instance) does
not slow down other buckets. The other 32 bits of the hash say where the search for the slot begins. Different texts whose 64 bits agree
by chance become candidates, and the confirmation refuses them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup.jit import Int, jit

_0, _32 = np.uint64(0), np.uint64(32)
_LOW, _CHAINED = np.uint64(0xFFFFFFFF), np.uint64(1 << 31)
MOST_TEXTS = (1 << 31) - 2


class Index(NamedTuple):
    """The kept texts, and the results so far. A place is an index in the order in which texts are considered."""

    table: NDArray[np.uint64]  # [bands, slots]: hash << 32 | place + 1, or | CHAINED | node; 0 is empty
    nodes: NDArray[np.uint32]  # [capacity, 2]: a place + 1, and the next node or 0; node 0 is not used
    contents: NDArray[np.uint64]  # [slots]: hash << 32 | place + 1 of the first text of that content
    witness: NDArray[np.int32]  # [N]: a place, or -1
    jaccard: NDArray[np.float64]  # [N]
    met: NDArray[np.uint32]  # [N]: the place + 1 that last had this text as a candidate
    candidates: NDArray[np.uint32]  # [N]: working memory for the candidates of one text


@jit
def home(h: np.uint64, slots: Int) -> Int:
    """Where the search for a hash begins."""
    return np.int64(((h >> _32) * np.uint64(slots)) >> _32)


@jit
def find(table: NDArray[np.uint64], h: np.uint64) -> Int:
    """The slot of a hash in one table, or the empty slot where it belongs."""
    slots = len(table)
    slot = home(h, slots)
    while table[slot] != _0 and table[slot] >> _32 != h & _LOW:
        slot = slot + 1 if slot + 1 < slots else 0
    return slot


@jit
def entry(h: np.uint64, place: Int) -> np.uint64:
    """The slot's content for one text."""
    return (h & _LOW) << _32 | np.uint64(place + 1)


@jit
def place_in(slot: np.uint64) -> Int:
    """The place of a slot that holds one text."""
    return np.int64(slot & _LOW) - 1


@jit
def gather(index: Index, hashes: NDArray[np.uint64], place: Int, slots: NDArray[np.int64]) -> Int:
    """Collect all texts with a common band hash in `index.candidates`, each once. Returns how many. Sets `slots` for `insert`."""
    count: Int = 0
    for band in range(len(hashes)):
        slots[band] = find(index.table[band], hashes[band])
        found = index.table[band, slots[band]] & _LOW
        if found == _0:
            continue
        if not found & _CHAINED:
            count = _meet(index, place, np.int64(found), count)
            continue
        node = np.int64(found & ~_CHAINED)
        while node:
            count = _meet(index, place, np.int64(index.nodes[node, 0]), count)
            node = np.int64(index.nodes[node, 1])
    return count


@jit
def _meet(index: Index, place: Int, other: Int, count: Int) -> Int:
    if index.met[other - 1] == place + 1:
        return count
    index.met[other - 1] = place + 1
    index.candidates[count] = other - 1
    return count + 1


@jit
def insert(index: Index, hashes: NDArray[np.uint64], place: Int, slots: NDArray[np.int64], node: Int) -> Int:
    """Enter a kept text at the slots that `gather` found. Returns the next free node; each band uses 2 at most."""
    for band in range(len(hashes)):
        found = index.table[band, slots[band]]
        if found == _0:
            index.table[band, slots[band]] = entry(hashes[band], place)
            continue
        following: Int = np.int64(found & _LOW & ~_CHAINED)
        if not found & _CHAINED:
            index.nodes[node, 0], index.nodes[node, 1] = following, 0
            following, node = node, node + 1
        index.nodes[node, 0], index.nodes[node, 1] = place + 1, following
        index.table[band, slots[band]] = (hashes[band] & _LOW) << _32 | _CHAINED | np.uint64(node)
        node += 1
    return node
