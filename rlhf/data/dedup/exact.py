"""The `exact` engine: it compares whole texts byte for byte, neither normalised nor cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup.removals import Removals
from rlhf.data.dedup.texts import Texts
from rlhf.recipe.steps import MatchSection

_RELEASE = 1 << 17  # texts between two releases of the mapped file


def run(texts: Texts, step: MatchSection, order: NDArray[np.int64], reference: int) -> Removals:
    """Removals of texts that equal an earlier one (or, with `reference`, one of the first `reference` in `order`).

    Python's 64-bit hash of the bytes finds an equal text, and the bytes confirm it. So the table holds numbers, no texts.
    """
    first: dict[int, int] = {}
    collided: dict[bytes, int] = {}  # texts with the same hash as a different, earlier text
    witness = np.full(len(texts), -1, np.int64)
    for place, index in enumerate(order.tolist()):
        own = texts.bytes(index)
        key = hash(own)
        found = first.get(key, -1)
        if found >= 0 and texts.bytes(found) != own:
            found = collided.get(own, -1)
        if place >= reference:
            witness[index] = found
        if found < 0 and (reference == 0 or place < reference):
            if key in first:
                collided[own] = index
            else:
                first[key] = index
        if place % _RELEASE == _RELEASE - 1:
            texts.release()
    return Removals.confirmed(witness, np.ones(len(texts)))
