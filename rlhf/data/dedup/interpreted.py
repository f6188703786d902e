"""The `fast` engine without numba: the same sketches, buckets and decisions in NumPy and Python, about 40 times slower.

It is used if numba is not installed, and tests compare the kernels with it. Texts are considered in order. A text goes if it matches a
text that was kept before it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup.bands import Bands
from rlhf.data.dedup.removals import Removals
from rlhf.data.dedup.shingles import jaccard, normalise, shingles
from rlhf.data.dedup.sketch import sketch
from rlhf.data.dedup.texts import Texts
from rlhf.recipe.steps import MatchSection

NOBODY = (-1, 0.0)


def greedy(texts: Texts, step: MatchSection, bands: Bands, order: NDArray[np.int64], reference: int) -> Removals:
    """Removals of texts in `order`. The texts at its first `reference` places always stay."""
    buckets = Buckets(texts, step, bands)
    inherited: dict[str, tuple[int, float]] = {}  # a normalised text -> the result of every later text that equals it
    witness = np.full(len(texts), -1, np.int64)
    similarity = np.zeros(len(texts))
    for place, index in enumerate(order.tolist()):
        text = normalise(texts[index], step.max_chars)
        compared = place >= reference
        if compared and text in inherited:
            witness[index], similarity[index] = inherited[text]
            continue
        hashes = sketch(text, step.shingle_size, bands).bands
        keys = [] if hashes is None else hashes.tolist()
        found = buckets.first_match(text, keys) if compared else NOBODY
        witness[index], similarity[index] = found
        stays = found == NOBODY and (reference == 0 or not compared)
        if stays:
            buckets.insert(index, keys)
        if compared or not keys:  # a long text that equals a reference may match an earlier reference
            inherited.setdefault(text, (index, 1.0) if stays else found)
    return Removals.confirmed(witness, similarity)


class Buckets:
    """The kept texts by their band hashes."""

    def __init__(self, texts: Texts, step: MatchSection, bands: Bands) -> None:
        self._texts, self._step = texts, step
        self._bands: list[dict[int, list[int]]] = [{} for _ in range(bands.number)]
        self._places: dict[int, int] = {}

    def insert(self, index: int, keys: list[int]) -> None:
        """Add a kept text. `keys` are its band hashes; a short text has none."""
        self._places[index] = len(self._places)
        for band, key in zip(self._bands, keys, strict=False):
            band.setdefault(key, []).append(index)

    def first_match(self, text: str, keys: list[int]) -> tuple[int, float]:
        """The earliest kept text in a common bucket whose exact similarity reaches the threshold, and that similarity."""
        candidates = {i for band, key in zip(self._bands, keys, strict=False) for i in band.get(key, ())}
        size = self._step.shingle_size
        own = shingles(text, size) if candidates else set()
        for index in sorted(candidates, key=self._places.__getitem__):
            similarity = jaccard(own, shingles(normalise(self._texts[index], self._step.max_chars), size))
            if similarity >= self._step.threshold:
                return index, similarity
        return NOBODY
