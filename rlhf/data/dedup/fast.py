"""The `fast` engine: sketches find candidates, exact Jaccard similarity confirms them, the first of each is kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup.bands import choose_bands
from rlhf.data.dedup.interpreted import greedy
from rlhf.data.dedup.removals import Removals
from rlhf.data.dedup.texts import Texts
from rlhf.recipe.steps import MatchSection


def fast(texts: Texts, step: MatchSection, order: NDArray[np.int64], reference: int) -> Removals:
    """See `rlhf.data.dedup.dedup`."""
    return greedy(texts, step, choose_bands(step.threshold, step.num_perm), order, reference)
