"""The `datasketch` engine: MinHash-LSH with the reference lab's settings and without confirmation, kept for comparison.

The settings are the lab's: the letters and digits of a text's first 500 characters in lower case, shingles of 5 characters, 256
permutations, threshold 0.8. The signatures are those of the package `datasketch`, computed in bulk. Three things are different from the lab:

- A text is removed because of a text that stays. The lab inserts all texts first, and then removes every later match of each text,
  also of a text that was itself removed; so it removes more.
- A removal names its witness: the kept text of the highest estimated similarity, with the exact similarity.
- Texts shorter than one shingle are compared whole. In the lab they all match one another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.data.dedup.removals import Removal, Removals
from rlhf.data.dedup.shingles import jaccard, normalise, shingles
from rlhf.data.dedup.texts import Texts
from rlhf.errors import SetupError
from rlhf.recipe.steps import MatchSection

_BLOCK = 4096  # texts hashed at once


def run(texts: Texts, step: MatchSection, order: NDArray[np.int64], reference: int) -> Removals:
    """Removals by the reference recipe. Raises SetupError where the package is missing."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as e:
        raise SetupError("engine: datasketch is not installed; run: pip install 'rlhf[dedup]'") from e
    kept = MinHashLSH(threshold=step.threshold, num_perm=step.num_perm)
    signatures: dict[int, Any] = {}
    short: dict[str, int] = {}
    removed = []
    size = step.shingle_size
    for start in range(0, len(texts), _BLOCK):
        indices = order[start : start + _BLOCK].tolist()
        cleaned = [normalise(texts[i], step.max_chars) for i in indices]
        sets = [shingles(t, size) for t in cleaned]
        hashed = MinHash.bulk([[s.encode() for s in shingle] for shingle in sets], num_perm=step.num_perm)
        for place, (index, text, own, signature) in enumerate(zip(indices, cleaned, sets, hashed, strict=True), start):
            compared, inserted = place >= reference, place < reference or reference == 0
            if not own:
                if compared and (witness := short.get(text, -1)) >= 0:
                    removed.append(Removal(index, witness, 1.0, 1.0))
                elif inserted:
                    short.setdefault(text, index)
            elif compared and (matches := kept.query(signature)):
                scored = [(signatures[k].jaccard(signature), -k) for k in matches]
                similarity, witness = max(scored)[0], -max(scored)[1]
                other = shingles(normalise(texts[witness], step.max_chars), size)
                removed.append(Removal(index, witness, float(similarity), jaccard(own, other)))
            elif inserted:
                kept.insert(index, signature)
                signatures[index] = signature
    return Removals.of(removed)
