"""The `fast` engine on numba: memory for the kernels, and the loop that feeds them blocks. One thread, deterministic.

For each text, memory holds 8 x bands x 1.6 bytes of index (about 300), 30 bytes of results, and the offset. The texts themselves may be in
a mapped file; of that, memory holds only what was read since the last release.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup.bands import Bands
from rlhf.data.dedup.chars import lower_table
from rlhf.data.dedup.greedy import BLOCK, Given, Room, compare_places, consider, sketch_places
from rlhf.data.dedup.index import MOST_TEXTS, Index
from rlhf.data.dedup.kernels import SIGMAS, WIDER
from rlhf.data.dedup.removals import Removals
from rlhf.data.dedup.similarity import CHUNK, table_bits
from rlhf.data.dedup.texts import Texts
from rlhf.errors import DataError
from rlhf.recipe.steps import MatchSection

_ROOM = 1.6  # slots for each text in each table
_RELEASE = 32  # blocks between two releases of the mapped file
_WHOLE = 1 << 62  # more characters than any text has


def greedy(texts: Texts, step: MatchSection, bands: Bands, order: NDArray[np.int64], reference: int) -> Removals:
    """Removals of texts in `order`. The texts at its first `reference` places always stay."""
    if len(texts) > MOST_TEXTS:
        raise DataError("dedup", f"{len(texts)} texts are too many for engine: fast, which takes {MOST_TEXTS} at most")
    given = given_of(texts, step, bands, order, reference)
    index, room = _index(len(texts), bands, reference or len(texts)), _room(given)
    node, start = 1, 0
    wide = sigma = False
    while start < len(texts):
        stop = min(start + BLOCK, len(texts))
        if len(index.nodes) < node + 2 * bands.number * BLOCK:
            index = index._replace(nodes=np.concatenate([index.nodes, np.zeros_like(index.nodes)]))
        node, asked = map(int, consider(given, index, room, start, stop, node))
        if asked:
            wide, sigma = wide or asked == WIDER, sigma or asked == SIGMAS
            given = given._replace(lower=lower_table(wide, sigma))
            continue
        start = stop
        if start // BLOCK % _RELEASE == 0:
            texts.release()
    places = index.witness
    witness = np.full(len(texts), -1, np.int64)
    jaccard = np.zeros(len(texts))
    gone = np.flatnonzero(places >= 0)
    witness[order[gone]], jaccard[order[gone]] = order[places[gone]], index.jaccard[gone]
    return Removals.confirmed(witness, jaccard)


def given_of(
    texts: Texts,
    step: MatchSection,
    bands: Bands,
    order: NDArray[np.int64],
    reference: int,
    *,
    wide: bool = False,
    sigma: bool = False,
) -> Given:
    """What the kernels need of the texts and the step. `wide` and `sigma` say what the table of characters holds."""
    max_chars = _WHOLE if step.max_chars is None else step.max_chars
    lower = lower_table(wide, sigma)
    size, threshold = step.shingle_size, step.threshold
    order = order.view()
    order.flags.writeable = False  # an order from another process is read-only too: so there is one type, compiled once
    return Given(texts.data, texts.offsets, order, lower, reference, max_chars, size, *bands, threshold)


def sketches(
    given: Given, places: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.bool_], NDArray[np.uint64]]:
    """For `ray`: content uint64 [n], short bool [n] and band hashes uint64 [n, bands] (zeros for short texts) of n places."""
    content, length = np.zeros(len(places), np.uint64), np.zeros(len(places), np.int64)
    hashes = np.zeros((len(places), given.bands), np.uint64)
    room = _room(given)._replace(content=content, length=length, hashes=hashes)
    sketch_places(given, room, places)
    return content, length < given.size, hashes


def similarities(given: Given, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """For `ray`: the exact similarity of the texts at pairs int64 [n, 2] of places; -1 below the threshold.

    Pairs with the same first place must follow each other.
    """
    found = np.zeros(len(pairs))
    compare_places(given, _room(given), pairs, found)
    return found


def _index(count: int, bands: Bands, kept: int) -> Index:
    """Memory for `kept` texts in the index of `count` texts. Pages that are not used are never touched."""
    return Index(
        table=np.zeros((bands.number, int(kept * _ROOM) + 16), np.uint64),
        nodes=np.zeros((4 * bands.number * BLOCK, 2), np.uint32),
        contents=np.zeros(int(count * _ROOM) + 16, np.uint64),
        witness=np.full(count, -1, np.int32),
        jaccard=np.zeros(count),
        met=np.zeros(count, np.uint32),
        candidates=np.zeros(count, np.uint32),
    )


def _room(given: Given) -> Room:
    longest = min(int(np.diff(given.offsets).max(initial=0)), given.max_chars)
    return Room(
        codes=np.zeros((2, longest + 1), np.uint32),
        keys=np.zeros(longest + 1, np.uint64),
        own=np.zeros(longest + 2, np.uint64),
        heads=np.zeros(1 << table_bits(longest), np.uint32),
        counted=np.zeros(longest + 2, np.uint32),
        foreign=np.zeros(longest + 2, np.uint64),
        foreign_heads=np.zeros(1 << table_bits(longest + CHUNK), np.uint32),
        values=np.zeros(given.bands * given.rows, np.uint32),
        hashes=np.zeros((BLOCK, given.bands), np.uint64),
        content=np.zeros(BLOCK, np.uint64),
        length=np.zeros(BLOCK, np.int64),
        slots=np.zeros(given.bands, np.int64),
    )
