"""Compiled: from UTF-8 bytes to a text's codes, keys and band hashes, exactly as `shingles` and `sketch` define them.

Each function writes into arrays of its caller, so no memory is allocated for a text. `codes` uint32 are the code points of a normalised
text. `lower` is `chars.lower_table`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup.chars import ASK, CASED, CODE, FINAL_SIGMA, IGNORABLE, SIGMA
from rlhf.data.dedup.jit import Bool, Int, jit
from rlhf.data.dedup.sketch import BAND, BASE, MARK, MIX, MIX2, PACKED, ROUNDS, SHORT, STEP

WIDER, SIGMAS = -1, -2  # what `read` returns if the text needs more than `lower` holds

_0, _1, _8, _24, _32 = np.uint64(0), np.uint64(1), np.uint64(8), np.uint64(24), np.uint64(32)
_VALUE, _ASCII = np.uint64(0xFFFFFF), np.uint64(0x7F)
_EMPTY = np.uint32(0xFFFFFFFF)
_PACKED, _CODE = PACKED, np.uint32(CODE)


@jit
def read(
    data: NDArray[np.uint8], start: Int, end: Int, max_chars: Int, lower: NDArray[np.uint32], codes: NDArray[np.uint32]
) -> Int:
    """Normalise the text data[start:end] into `codes`. Returns its length; or WIDER or SIGMAS, if `lower` must grow."""
    n = 0
    stop = min(end, start + max_chars)
    high = np.uint8(0)
    text = data[start:stop]  # indices from 0, so no access tests for a negative index
    for i in range(len(text)):
        high |= text[i]
    if high < 128:
        length = _0
        for i in range(len(text)):
            code = lower[text[i]] & _CODE
            codes[length] = code
            length += np.uint64(code != 0)
        return np.int64(length)
    at = start
    for place in range(max_chars):
        if at >= end:
            break
        point, width = decode(data, at)
        if point >= len(lower):
            return WIDER
        code = lower[point]
        if point == SIGMA:
            if code & ASK:
                return SIGMAS
            if _ends_word(data, start, at, end, max_chars - place - 1, lower):
                code = np.uint32(FINAL_SIGMA)
        codes[n] = code & CODE
        n += (code & CODE) != 0
        at += width
    return n


@jit
def decode(data: NDArray[np.uint8], at: Int) -> tuple[Int, Int]:
    """The code point at a byte, and how many bytes it takes."""
    a = np.int64(data[at])
    if a < 0x80:
        return a, 1
    b = np.int64(data[at + 1]) & 0x3F
    if a < 0xE0:
        return (a & 0x1F) << 6 | b, 2
    c = np.int64(data[at + 2]) & 0x3F
    if a < 0xF0:
        return (a & 0x0F) << 12 | b << 6 | c, 3
    return (a & 0x07) << 18 | b << 12 | c << 6 | np.int64(data[at + 3]) & 0x3F, 4


@jit
def _ends_word(
    data: NDArray[np.uint8], start: Int, at: Int, end: Int, following: Int, lower: NDArray[np.uint32]
) -> Bool:
    """Whether the sigma at `at` ends a word: a cased letter before it, and none in the `following` characters. Ignorable characters are skipped."""
    cased = False
    back = at
    while back > start:
        back -= 1
        if data[back] & 0xC0 == 0x80:
            continue
        flags = lower[decode(data, back)[0]]
        if not flags & IGNORABLE:
            cased = flags & CASED != 0
            break
    if not cased:
        return False
    at += 2
    for _ in range(following):
        if at >= end:
            break
        point, width = decode(data, at)
        if not lower[point] & IGNORABLE:
            return bool(lower[point] & CASED == 0)
        at += width
    return True


@jit
def keys_of(codes: NDArray[np.uint32], n: Int, size: Int, keys: NDArray[np.uint64]) -> Int:
    """Write the keys of all shingles of codes[:n], in order. Returns how many."""
    codes, high = codes[:n], np.uint32(0)
    for i in range(len(codes)):
        high |= codes[i]
    shingles = n - size + 1
    if size <= _PACKED:
        _pack(codes, size, keys[:shingles])
        if high < 128:
            return shingles
    drop = _1
    for _ in range(size):
        drop *= BASE
    rolling = _0
    last = -1  # the index of the last character that cannot be packed
    for i in range(n):
        rolling = rolling * BASE + np.uint64(codes[i])
        if codes[i] >= 128:
            last = i
        if i >= size:
            rolling -= drop * np.uint64(codes[i - size])
        if i >= size - 1 and (size > _PACKED or last > i - size):
            keys[i - size + 1] = mix(rolling) | MARK
    return shingles


@jit
def _pack(codes: NDArray[np.uint32], size: Int, keys: NDArray[np.uint64]) -> None:
    """Write the keys of ASCII shingles: their characters side by side. The caller overwrites the keys of other shingles."""
    following = codes[size - 1 :]
    top = np.uint64(8 * (size - 1))
    packed = _0
    for i in range(size - 1):
        packed = packed >> _8 | (np.uint64(codes[i]) & _ASCII) << top
    for i in range(len(keys)):
        packed = packed >> _8 | (np.uint64(following[i]) & _ASCII) << top
        keys[i] = packed


@jit
def mix(key: np.uint64) -> np.uint64:
    """See `sketch.mix`."""
    h = key * MIX
    h ^= h >> _32
    return h * MIX2


@jit
def hash_short(codes: NDArray[np.uint32], n: Int) -> np.uint64:
    """The content hash of a text shorter than a shingle."""
    rolling = _0
    for i in range(n):
        rolling = rolling * BASE + np.uint64(codes[i])
    return mix(rolling ^ SHORT)


@jit
def hash_all(hashes: NDArray[np.uint64], n: Int) -> np.uint64:
    """Turn keys into hashes, in place. Returns their sum, the content hash."""
    total = _0
    for i in range(n):
        h = mix(hashes[i])
        hashes[i] = h
        total += h
    return total


@jit
def bins_of(hashes: NDArray[np.uint64], n: Int, count: Int, values: NDArray[np.uint32]) -> None:
    """See `sketch.bins`."""
    bins = np.uint64(count)
    for b in range(count):
        values[b] = _EMPTY
    for i in range(n):
        where = ((hashes[i] >> _32) * bins) >> _32
        values[where] = min(values[where], np.uint32(hashes[i] >> _8 & _VALUE))
    for throw in range(1, ROUNDS):
        if not _any_empty(values, count):
            return
        step = np.uint64(throw) * STEP
        top = np.uint32(throw << 24)
        for i in range(n):
            h = hashes[i] + step
            h = (h ^ h >> _32) * BAND
            where = ((h >> _32) * bins) >> _32
            values[where] = min(values[where], top | np.uint32(h >> _8 & _VALUE))  # a branch would cost more
    for b in range(count):
        if values[b] == _EMPTY:
            step = np.uint64(ROUNDS + b) * STEP
            least = _VALUE
            for i in range(n):
                h = hashes[i] + step
                least = min(least, ((h ^ h >> _32) * BAND) >> _8 & _VALUE)
            values[b] = np.uint32(ROUNDS << 24) | np.uint32(least)


@jit
def _any_empty(values: NDArray[np.uint32], count: Int) -> Bool:
    highest = np.uint32(0)
    for b in range(count):
        highest = max(highest, values[b])
    return bool(highest == _EMPTY)


@jit
def bands_of(values: NDArray[np.uint32], number: Int, rows: Int, out: NDArray[np.uint64]) -> None:
    """See `sketch.band_hashes`."""
    for band in range(number):
        h = np.uint64(band + 1) * BASE
        for k in range(rows):
            h = (h ^ np.uint64(values[band * rows + k])) * MIX
            h ^= h >> _32
        out[band] = h
