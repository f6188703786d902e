"""From shingles to a sketch to bands, defined in NumPy. The compiled kernels must give exactly the same bits.

    key     a shingle as 64 bits: its characters themselves if they are ASCII and at most 8, else a hash of them
    hash    the mixed key
    sketch  `bins` values: throw each hash into a bin, and keep the least value of each bin; throw again, with other hashes, until
            no bin is empty (Dahlgaard, Knudsen, Thorup 2017: Fast Similarity Sketching)
    bands   one 64-bit hash for each band of sketch values; `content`, the sum of all hashes, finds equal texts

As with MinHash, two sketches agree in each value with a probability that is their sets' Jaccard similarity. But a text of 400 shingles
costs about a thousand steps, not 400 x 256. In one-permutation hashing with densification, the values of a short text depend on each
other. Here they are nearly independent, so a prompt of 20 shingles is found as surely as a page.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup.bands import Bands

ROUNDS = 64  # throws of all hashes; a bin that is still empty takes the least value of one more throw
PACKED = 8  # characters of 7 bits that fit into a key as they are

# Odd 64-bit multipliers (from SplitMix64, MurmurHash3 and PCG); No packed key has the bit MARK, as its characters are below 128.
BASE, MIX, MIX2 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
STEP, BAND, SHORT, MARK = map(np.uint64, (0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 0x80))
_32, _8, _24 = np.uint64(32), np.uint64(8), np.uint64(24)
_VALUE = np.uint64(0xFFFFFF)

Hashes = NDArray[np.uint64]


class Sketch(NamedTuple):
    """The hash of a whole text, and its band hashes uint64 [bands]; these are None for a text shorter than a shingle."""

    content: int
    bands: Hashes | None


def sketch(text: str, size: int, bands: Bands) -> Sketch:
    """The sketch of a normalised text."""
    with np.errstate(over="ignore"):
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        if len(codes) < size:
            return Sketch(int(mix(_polynomial(codes[None, :]) ^ SHORT)[0]), None)
        hashes = mix(keys(codes, size))
        return Sketch(int(hashes.sum(dtype=np.uint64)), band_hashes(bins(hashes, bands.bins), bands))


def keys(codes: Hashes, size: int) -> Hashes:
    """One key for each shingle: codes uint64 [n] to uint64 [n - size + 1]."""
    runs = np.lib.stride_tricks.sliding_window_view(codes, size)
    hashed = mix(_polynomial(runs)) | MARK
    if size > PACKED:
        return hashed
    packed = (runs << (_8 * np.arange(size, dtype=np.uint64))).sum(axis=1, dtype=np.uint64)
    return np.where((runs < MARK).all(axis=1), packed, hashed)


def mix(keys: Hashes) -> Hashes:
    """Spread every bit of a key over the high bits of its hash."""
    hashes = keys * MIX
    hashes ^= hashes >> _32
    return hashes * MIX2


def bins(hashes: Hashes, count: int) -> NDArray[np.uint32]:
    """The sketch uint32 [count] of a set's hashes [n], n >= 1. The top 8 bits of a value are the number of its throw."""
    values = np.full(count, 0xFFFFFFFF, np.uint32)
    for throw in range(ROUNDS):
        if throw and values.max() != 0xFFFFFFFF:
            return values
        thrown = hashes if not throw else rethrow(hashes, throw)
        where = ((thrown >> _32) * np.uint64(count)) >> _32
        np.minimum.at(
            values, where.astype(np.int64), (np.uint32(throw << 24) | (thrown >> _8 & _VALUE)).astype(np.uint32)
        )
    for empty in np.flatnonzero(values == 0xFFFFFFFF):
        least = (rethrow(hashes, ROUNDS + int(empty)) >> _8 & _VALUE).min()
        values[empty] = np.uint32(ROUNDS << 24) | np.uint32(least)
    return values


def rethrow(hashes: Hashes, throw: int) -> Hashes:
    """Other hashes, for the throw with this number."""
    thrown = hashes + np.uint64(throw * int(STEP) % 2**64)
    thrown ^= thrown >> _32
    return thrown * BAND


def band_hashes(values: NDArray[np.uint32], bands: Bands) -> Hashes:
    """One hash for each band. Equal values in different bands have different hashes."""
    rows = values.reshape(bands.number, bands.rows).astype(np.uint64)
    hashes = np.arange(1, bands.number + 1, dtype=np.uint64) * BASE
    for k in range(bands.rows):
        hashes = (hashes ^ rows[:, k]) * MIX
        hashes ^= hashes >> _32
    return hashes


def _polynomial(runs: Hashes) -> Hashes:
    """The sum of code x BASE^(index from the right), modulo 2^64: [n, size] to [n]."""
    out = np.full(len(runs), 0, np.uint64)
    for k in range(runs.shape[1]):
        out = out * BASE + runs[:, k]
    return out
