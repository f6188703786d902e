"""Rankings to preference pairs: pure functions, used by `build`.

Which pairs, with the completions in order from the best (by `ranking`, or by falling score; equal scores keep file order):

    all             every better one with every worse one         3 completions give 3 pairs
    best_vs_rest    the best with every other                     2
    best_vs_worst   the best with the worst                       1
    adjacent        each with the next                            2
    random_k        k of those of `all`, drawn last               k

KoChatGPT's published trainers use `all` (its notebook) and `best_vs_rest`. A pair's margin is its score difference where
scores are known, else absent. Then in this order: pairs of equal texts go; ties (equal scores) go, or become two pairs of
margin 0, one each way (`ties: both`), or one of those two (`half`), which weighs as much as any other pair; pairs under
`min_margin` or over `max_margin` go; `random_k` draws k of what is left; over `max_pairs_per_prompt` those of the largest
margins stay (without margins: the first in the order above). Every pair that goes is counted by reason.

Chance (`random_k`, `half`) is a hash of the seed, the prompt and the pair's two texts, never a generator's state: what is
drawn of a row depends neither on its place, nor on the other rows, nor on the order in which the row lists its completions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import combinations, pairwise
from typing import Literal

from rlhf.data.rows import Row, pair_of, text_of
from rlhf.recipe.steps import PairsStep

Strategy = Literal["all", "best_vs_rest", "best_vs_worst", "adjacent", "random_k"]
Ties = Literal["drop", "both", "half"]
SAME_TEXT, TIE, MARGIN, WIDE = "same text", "tie", "under min_margin", "over max_margin"
NOT_DRAWN, MAX_PAIRS = "not drawn", "over max_pairs_per_prompt"


@dataclass(frozen=True)
class Pair:
    """Indices of the better and the worse completion; `margin` is their score difference, None when unknown."""

    better: int
    worse: int
    margin: float | None = None


@dataclass(frozen=True)
class Pairs:
    """The pairs kept, and those dropped by reason. `candidates = len(kept) + sum(dropped)`."""

    kept: list[Pair]
    dropped: Counter[str] = field(default_factory=Counter)
    candidates: int = 0


def order_of(scores: Sequence[float]) -> list[int]:
    """Indices from the highest score to the lowest; equal scores in their own order."""
    return sorted(range(len(scores)), key=lambda i: -scores[i])


def index_pairs(order: Sequence[int], strategy: Strategy) -> list[tuple[int, int]]:
    """(better, worse) pairs of an order (order[0] = index of the best); for `random_k` all that it may draw from."""
    match strategy:
        case "all" | "random_k":
            return list(combinations(order, 2))
        case "best_vs_rest":
            return [(order[0], other) for other in order[1:]]
        case "best_vs_worst":
            return [(order[0], order[-1])]
        case "adjacent":
            return list(pairwise(order))


def make_pairs(
    *,
    ranking: Sequence[int] | None = None,
    scores: Sequence[float] | None = None,
    texts: Sequence[str] | None = None,
    strategy: Strategy = "all",
    k: int | None = None,
    min_margin: float = 0.0,
    max_margin: float | None = None,
    ties: Ties = "drop",
    max_pairs: int | None = None,
    key: str = "",
) -> Pairs:
    """Pairs of one ranking, by the rules above. Give `ranking` (an order) or `scores`.

    `key` seeds what is left to chance. Without `texts` the completions are told apart by their indices. Raises ValueError
    when neither or both of ranking and scores are given, and for a margin asked of a ranking that has no scores.
    """
    if (ranking is None) == (scores is None):
        raise ValueError("give either ranking (an order of indices) or scores")
    if scores is None and (min_margin > 0 or max_margin is not None):
        name = "min_margin" if min_margin > 0 else "max_margin"
        raise ValueError(f"{name} needs scores, and this ranking has only an order")
    if (strategy == "random_k") != (k is not None):
        raise ValueError("k belongs to the strategy random_k, which needs it")
    order = order_of(scores) if scores is not None else list(ranking or ())
    chance = _Chance(key, texts if texts is not None else [str(i) for i in range(len(order))])
    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    for better, worse in index_pairs(order, strategy):
        found = [Pair(better, worse, scores[better] - scores[worse] if scores is not None else None)]
        margin = found[0].margin
        if margin == 0 and ties == "both":
            found.append(Pair(worse, better, margin))
        elif margin == 0 and ties == "half":
            found = [min((Pair(better, worse, margin), Pair(worse, better, margin)), key=chance.of)]
        same = texts is not None and texts[better] == texts[worse]
        if reason := SAME_TEXT if same else _objection(margin, ties, min_margin, max_margin):
            dropped[reason] += len(found)
        else:
            kept += found
    if k is not None and len(kept) > k:
        dropped[NOT_DRAWN] += len(kept) - k
        drawn = set(sorted(kept, key=chance.of)[:k])
        kept = [pair for pair in kept if pair in drawn]
    if max_pairs is not None and len(kept) > max_pairs:
        dropped[MAX_PAIRS] += len(kept) - max_pairs
        kept = sorted(kept, key=lambda p: -(p.margin or 0.0))[:max_pairs]
    return Pairs(kept, dropped, len(kept) + dropped.total())


def _objection(margin: float | None, ties: Ties, min_margin: float, max_margin: float | None) -> str | None:
    """Why a pair of this margin goes, or None; nothing speaks against an unknown margin."""
    if margin is None:
        return None
    if margin == 0 and ties == "drop":
        return TIE
    if below(margin, min_margin):
        return MARGIN
    return WIDE if max_margin is not None and below(max_margin, margin) else None


def below(margin: float, bound: float) -> bool:
    """Whether a difference of scores is under a bound, and not the bound itself up to rounding: 0.3 - 0.1 < 0.2 in floats."""
    return margin < bound and not math.isclose(margin, bound)


class _Chance:
    """A number for each ordered pair of completions, as good as drawn: a hash of the key and both texts."""

    def __init__(self, key: str, texts: Sequence[str]) -> None:
        self._key, self._texts = key, texts

    def of(self, pair: Pair) -> bytes:
        digest = blake2b(self._digest(self._key), digest_size=8)
        digest.update(self._digest(self._texts[pair.better]))
        digest.update(self._digest(self._texts[pair.worse]))
        return digest.digest()

    @staticmethod
    def _digest(text: str) -> bytes:
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def pairs_of(row: Row, step: PairsStep, seed: int = 0) -> tuple[list[Row], Pairs]:
    """A ranking row's preference rows. `seed` is the recipe's."""
    completions = row["completions"]
    pairs = make_pairs(
        ranking=row.get("ranking"),
        scores=row.get("scores"),
        texts=[text_of(c) for c in completions],
        strategy=step.strategy,
        k=step.k,
        min_margin=step.min_margin,
        max_margin=step.max_margin,
        ties=step.ties,
        max_pairs=step.max_pairs_per_prompt,
        key=f"{seed}\n{text_of(row['prompt'])}",
    )
    return [pair_of(row, pair.better, pair.worse, pair.margin) for pair in pairs.kept], pairs
