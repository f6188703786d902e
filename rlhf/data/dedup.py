"""Near-duplicates out, the first of each kept: pure functions of texts, used by `build`.

`exact` compares whole texts. `datasketch` is the reference recipe: the alphanumerics of a text's first 500 characters in
lower case, its 5-character shingles, 256 permutations, MinHash LSH at threshold 0.8; a text that finds any kept one in
its buckets goes. The signatures are the reference's own, only computed in bulk.

What is different: kept texts alone are in the buckets (a dropped one cannot drop the next, as connected components would),
every drop names its witness with the estimated and the exact Jaccard similarity, and texts shorter than one shingle,
which have no signature, are compared whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf.errors import SetupError
from rlhf.recipe.steps import DedupStep

_BLOCK = 4096  # texts hashed at once


@dataclass(frozen=True)
class Removal:
    """Text `index` goes because of the kept text `witness`. `similarity` is the engine's, `jaccard` exact."""

    index: int
    witness: int
    similarity: float
    jaccard: float


def dedup(texts: Sequence[str], step: DedupStep) -> list[Removal]:
    """What the step's engine removes, in order. `witness` is always a text that stays."""
    return ENGINES[step.engine](texts, step)


def normalise(text: str, max_chars: int | None) -> str:
    """The letters and digits (of any script) of the first `max_chars` characters, in lower case."""
    return "".join(c for c in text[:max_chars].lower() if c.isalnum())


def shingles(text: str, size: int) -> set[str]:
    """Every run of `size` characters; none for a shorter text."""
    return {text[i : i + size] for i in range(len(text) - size + 1)}


def jaccard(a: set[str], b: set[str]) -> float:
    """Shared shingles over all shingles of both; two empty sets are equal."""
    return len(a & b) / len(a | b) if a or b else 1.0


def _exact(texts: Sequence[str], step: DedupStep) -> list[Removal]:
    first: dict[str, int] = {}
    removed = []
    for index, text in enumerate(texts):
        witness = first.setdefault(text, index)
        if witness != index:
            removed.append(Removal(index, witness, 1.0, 1.0))
    return removed


def _datasketch(texts: Sequence[str], step: DedupStep) -> list[Removal]:
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as e:
        raise SetupError("dedup.engine: datasketch is not installed; run: pip install 'rlhf[dedup]'") from e
    index_of_kept = MinHashLSH(threshold=step.threshold, num_perm=step.num_perm)
    signatures: dict[int, MinHash] = {}
    short: dict[str, int] = {}
    removed = []
    for start in range(0, len(texts), _BLOCK):
        cleaned = [normalise(t, step.max_chars) for t in texts[start : start + _BLOCK]]
        sets = [shingles(t, step.shingle_size) for t in cleaned]
        hashed = MinHash.bulk([[s.encode() for s in shingle] for shingle in sets], num_perm=step.num_perm)
        for index, (text, own, signature) in enumerate(zip(cleaned, sets, hashed, strict=True), start):
            if not own:
                witness = short.setdefault(text, index)
                if witness != index:
                    removed.append(Removal(index, witness, 1.0, 1.0))
                continue
            if matches := index_of_kept.query(signature):
                scored = [(signatures[k].jaccard(signature), -k) for k in matches]
                similarity, witness = max(scored)[0], -max(scored)[1]
                other = shingles(normalise(texts[witness], step.max_chars), step.shingle_size)
                removed.append(Removal(index, witness, round(float(similarity), 6), round(jaccard(own, other), 6)))
            else:
                index_of_kept.insert(index, signature)
                signatures[index] = signature
    return removed


ENGINES: dict[str, Callable[[Sequence[str], DedupStep], list[Removal]]] = {"exact": _exact, "datasketch": _datasketch}
