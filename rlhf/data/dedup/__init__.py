"""Remove near-duplicates and keep the first of each, or remove rows that match another set (decontamination). Used by `build`.

    exact        compares whole texts
    fast         sketches find candidates, and the exact Jaccard similarity of character shingles confirms them
    ray          the same result; the work is shared by several machines
    datasketch   MinHash-LSH with the reference lab's settings, without confirmation (`reference_recipe` says what is different)

Two things are different from the usual tools. They remove connected components: a chain of similar texts may remove a text that is
similar to no text that stays. Here a text goes only if it matches a text that stays, the *witness*; every removal names its witness and
the exact similarity. And a text shorter than one shingle, which has no sketch, is compared whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup import distributed, exact, fast, reference_recipe
from rlhf.data.dedup.removals import Removal, Removals
from rlhf.data.dedup.shingles import jaccard, normalise, shingles
from rlhf.data.dedup.texts import Texts, TextWriter
from rlhf.recipe.steps import MatchSection

__all__ = ["Removal", "Removals", "TextWriter", "Texts", "dedup", "jaccard", "normalise", "shingles"]

Engine = Callable[[Texts, MatchSection, NDArray[np.int64], int], Removals]

ENGINES: dict[str, Engine] = {
    "exact": exact.run,
    "fast": fast.run,
    "ray": distributed.run,
    "datasketch": reference_recipe.run,
}


def dedup(
    texts: Texts | Sequence[str],
    step: MatchSection,
    *,
    order: NDArray[np.int64] | None = None,
    reference: int = 0,
) -> Removals:
    """What the step's engine removes. A witness always stays; with `fast`, `ray` and `exact` it is the earliest match.

    `order` [N] is the order in which texts are considered, a permutation of 0..N-1: of texts that match, the first one stays.
    A text's *place* is its index in this order. With `reference` > 0, texts[:reference] stay, the others go if they match one of
    these, and the others are not compared with each other. Raises ValueError for an `order` or `reference` that does not fit the
    texts, and SetupError if the engine's package is missing.
    """
    if not isinstance(texts, Texts):
        texts = Texts.of(texts)
    if not 0 <= reference <= len(texts):
        raise ValueError(f"reference is {reference}, there are {len(texts)} texts")
    return ENGINES[step.engine](texts, step, _places(len(texts), order, reference), reference)


def _places(count: int, order: NDArray[np.int64] | None, reference: int) -> NDArray[np.int64]:
    """The checked order, with the reference texts first."""
    if order is None:
        return np.arange(count)
    if order.shape != (count,) or not np.array_equal(np.sort(order), np.arange(count)):
        raise ValueError(f"order must be a permutation of 0..{count - 1}")
    return np.concatenate([order[order < reference], order[order >= reference]]).astype(np.int64)
