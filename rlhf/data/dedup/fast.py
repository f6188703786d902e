"""The `fast` engine: sketches find candidates, the exact Jaccard similarity confirms them, and the first of each stays."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup.bands import choose_bands
from rlhf.data.dedup.removals import Removals
from rlhf.data.dedup.texts import Texts
from rlhf.recipe.steps import MatchSection


def run(texts: Texts, step: MatchSection, order: NDArray[np.int64], reference: int) -> Removals:
    """See `rlhf.data.dedup.dedup`. Compiled if numba is installed; else the same result in NumPy, more slowly."""
    bands = choose_bands(step.threshold, step.num_perm)
    if has_numba():
        from rlhf.data.dedup.compiled import greedy
    else:
        from rlhf.data.dedup.interpreted import greedy
    return greedy(texts, step, bands, order, reference)


def has_numba() -> bool:
    """Whether the compiler is installed."""
    return importlib.util.find_spec("numba") is not None
