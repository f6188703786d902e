"""Near-duplicates out, the first of each kept; also rows out that match another set (decontamination). Used by `build`.

    exact        whole texts
    fast         sketches find candidates, exact Jaccard similarity of character shingles confirms them
    ray          the same result, the work spread over machines
    datasketch   MinHash-LSH with the reference lab's settings, unconfirmed (see `reference_recipe` for what is different)

What is different from the usual tools: no engine drops by connected components, where a chain of likenesses drops a text that
resembles nothing kept. A text goes when it matches a text that stays; every removal names that witness with the exact
similarity; and texts shorter than one shingle, which have no sketch, are compared whole.
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
    """What the step's engine removes. No witness is itself removed; with `fast`, `ray` and `exact` it is the earliest match.

    `order` [N] is the order in which texts are considered, a permutation of 0..N-1: of those alike, the first in it stays.
    `reference` > 0: texts[:reference] are compared against and stay; the others go when they match one of them, and are
    not compared with each other. Raises ValueError for an `order` or `reference` that does not fit the texts, and
    SetupError where the engine's package is missing.
    """
    if not isinstance(texts, Texts):
        texts = Texts.of(texts)
    if not 0 <= reference <= len(texts):
        raise ValueError(f"reference is {reference}, there are {len(texts)} texts")
    return ENGINES[step.engine](texts, step, _places(len(texts), order, reference), reference)


def _places(count: int, order: NDArray[np.int64] | None, reference: int) -> NDArray[np.int64]:
    """The order, checked, with the references before all others."""
    if order is None:
        return np.arange(count)
    if order.shape != (count,) or not np.array_equal(np.sort(order), np.arange(count)):
        raise ValueError(f"order must be a permutation of 0..{count - 1}")
    return np.concatenate([order[order < reference], order[order >= reference]]).astype(np.int64)
