"""Compiled: the greedy pass. It takes the texts in order, a block at a time: sketch all, fetch their slots, then decide one by one.

Only kept texts are in the index, so no two kept texts match, and every removed text has a witness that stays. If a normalised text equals
an earlier one, it gets the same result without a search: a search would find the same, since a witness is the earliest match.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup.index import Index, entry, gather, home, insert, place_in
from rlhf.data.dedup.jit import Bool, Int, jit
from rlhf.data.dedup.kernels import bands_of, bins_of, hash_all, hash_short, keys_of, read
from rlhf.data.dedup.similarity import make_set, similarity

BLOCK = 256  # texts whose slots are fetched together: 256 x 24 cache lines fit into the second-level cache

_0, _32, _LOW = np.uint64(0), np.uint64(32), np.uint64(0xFFFFFFFF)


class Given(NamedTuple):
    """The texts, the order of their places, and when two match."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    order: NDArray[np.int64]
    lower: NDArray[np.uint32]
    reference: int
    max_chars: int
    size: int
    bands: int
    rows: int
    threshold: float


class Room(NamedTuple):
    """Working memory for one text, and for the hashes of one block."""

    codes: NDArray[np.uint32]  # [2, longest]: the text's, and another's
    keys: NDArray[np.uint64]  # [longest]
    own: NDArray[np.uint64]  # [1 + longest]: the text's keys, after a zero
    heads: NDArray[np.uint32]  # [table]: the hash table of the set of `own`
    counted: NDArray[np.uint32]  # [1 + longest]: the number of the candidate that last had this key
    foreign: NDArray[np.uint64]  # [1 + longest]: the candidate's keys that are not in the set, after a zero
    foreign_heads: NDArray[np.uint32]  # [table]
    values: NDArray[np.uint32]  # [bins]
    hashes: NDArray[np.uint64]  # [BLOCK, bands]
    content: NDArray[np.uint64]  # [BLOCK]
    length: NDArray[np.int64]  # [BLOCK]: of the normalised text
    slots: NDArray[np.int64]  # [bands]


@jit
def consider(given: Given, index: Index, room: Room, start: Int, stop: Int, node: Int) -> tuple[Int, Int]:
    """Decide on the places start..stop, a block at most. Returns (next free node, 0); or (node, what `read` asks for), and nothing is done."""
    for place in range(start, stop):
        n = _sketch(given, room, place, place - start)
        if n < 0:
            return node, n
    _fetch(given, index, room, stop - start)
    for place in range(start, stop):
        node = _decide(given, index, room, place, place - start, node)
    return node, 0


@jit
def _read(given: Given, room: Room, side: Int, place: Int) -> Int:
    text = given.order[place]
    start, end = given.offsets[text], given.offsets[text + 1]
    return read(given.data, start, end, given.max_chars, given.lower, room.codes[side])


@jit
def _sketch(given: Given, room: Room, place: Int, k: Int) -> Int:
    n = _read(given, room, 0, place)
    room.length[k] = n
    if n < given.size:
        if n >= 0:
            room.content[k] = hash_short(room.codes[0], n)
        return n
    shingles = keys_of(room.codes[0], n, given.size, room.keys)
    room.content[k] = hash_all(room.keys, shingles)
    bins_of(room.keys, shingles, given.bands * given.rows, room.values)
    bands_of(room.values, given.bands, given.rows, room.hashes[k])
    return n


@jit
def _fetch(given: Given, index: Index, room: Room, count: Int) -> None:
    """Read every slot that the block will need, so that the processor waits for all of them at the same time."""
    touched = _0
    for k in range(count):
        touched |= index.contents[home(room.content[k], len(index.contents))]
        if room.length[k] >= given.size:
            for band in range(given.bands):
                touched |= index.table[band, home(room.hashes[k, band], index.table.shape[1])]
    room.slots[0] = np.int64(touched)  # the result is used, so the compiler does not remove the reads


@jit
def _decide(given: Given, index: Index, room: Room, place: Int, k: Int, node: Int) -> Int:
    """Set the result of one place, and index its text if it stays. Returns the next free node."""
    compared, short = place >= given.reference, room.length[k] < given.size
    if compared or short:  # a long text that equals a reference may match an earlier reference, so the index decides
        same = _same(given, index, room, place, room.length[k], room.content[k])
        if same >= 0:
            if compared:
                _inherit(given, index, place, same)
            return node
    if short:
        return node
    count = gather(index, room.hashes[k], place, room.slots)
    if compared and count:
        _confirm(given, index, room, place, count)
    if not compared or (given.reference == 0 and index.witness[place] < 0):
        node = insert(index, room.hashes[k], place, room.slots, node)
    return node


@jit
def _same(given: Given, index: Index, room: Room, place: Int, n: Int, content: np.uint64) -> Int:
    """The first place with an equal normalised text; -1 if there is none, and then this one is entered as the first."""
    slots = len(index.contents)
    slot = home(content, slots)
    loaded = False
    while index.contents[slot] != _0:
        if index.contents[slot] >> _32 == content & _LOW:
            other = place_in(index.contents[slot])
            if not loaded:
                _read(given, room, 0, place)
                loaded = True
            if _read(given, room, 1, other) == n and _equal(room.codes[0], room.codes[1], n):
                return other
        slot = slot + 1 if slot + 1 < slots else 0
    index.contents[slot] = entry(content, place)
    return -1


@jit
def _equal(a: NDArray[np.uint32], b: NDArray[np.uint32], n: Int) -> Bool:
    differ = np.uint32(0)
    for i in range(n):
        differ |= a[i] ^ b[i]
    return bool(differ == 0)


@jit
def _inherit(given: Given, index: Index, place: Int, same: Int) -> None:
    stays = given.reference == 0 and index.witness[same] < 0
    if stays or same < given.reference:
        index.witness[place], index.jaccard[place] = same, 1.0
    else:
        index.witness[place], index.jaccard[place] = index.witness[same], index.jaccard[same]


@jit
def _confirm(given: Given, index: Index, room: Room, place: Int, count: Int) -> None:
    """Set the witness of a place to the earliest of its candidates that matches."""
    shingles, distinct = _load(given, room, place)
    _sort(index.candidates[:count])
    for c in range(count):
        other = np.int64(index.candidates[c])
        found = _compare(given, room, shingles, distinct, other, c + 1)
        if found >= 0.0:
            index.witness[place], index.jaccard[place] = other, found
            return


@jit
def _load(given: Given, room: Room, place: Int) -> tuple[Int, Int]:
    """Make the set of a place's shingles. Returns how many shingles there are, and how many distinct ones."""
    n = _read(given, room, 0, place)
    shingles = keys_of(room.codes[0], n, given.size, room.own[1:])
    room.counted[: shingles + 1] = np.uint32(0)
    return shingles, make_set(room.own, shingles, room.heads)


@jit
def _compare(given: Given, room: Room, shingles: Int, distinct: Int, other: Int, mark: Int) -> float:
    """The similarity of the loaded place and another; -1 below the threshold."""
    n = _read(given, room, 1, other)
    return similarity(
        room.own,
        shingles,
        distinct,
        room.heads,
        room.counted,
        mark,
        room.keys,
        keys_of(room.codes[1], n, given.size, room.keys),
        room.foreign,
        room.foreign_heads,
        given.threshold,
    )


@jit
def _sort(places: NDArray[np.uint32]) -> None:
    """Shell sort, earliest first. Mostly there are few places; thousands, with a shared beginning, are still fast."""
    gap = 1
    while gap < len(places) // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, len(places)):
            place, at = places[i], i
            while at >= gap and places[at - gap] > place:
                places[at] = places[at - gap]
                at -= gap
            places[at] = place
        gap //= 3


@jit
def sketch_places(given: Given, room: Room, places: NDArray[np.int64]) -> None:
    """Sketch the texts at n places into the rows of `room`'s content, length and hashes, [n] here."""
    for k in range(len(places)):
        _sketch(given, room, places[k], k)


@jit
def compare_places(given: Given, room: Room, pairs: NDArray[np.int64], found: NDArray[np.float64]) -> None:
    """Set found [n] to the similarity of pairs [n, 2]; -1 below the threshold. Pairs with the same first place follow each other."""
    shingles: Int = 0
    distinct: Int = 0
    for k in range(len(pairs)):
        if k == 0 or pairs[k, 0] != pairs[k - 1, 0]:
            shingles, distinct = _load(given, room, pairs[k, 0])
        found[k] = _compare(given, room, shingles, distinct, pairs[k, 1], k + 1)
