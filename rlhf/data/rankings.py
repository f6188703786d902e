"""Rankings to preference pairs: pure functions, used by `build`.

Which pairs, with the completions in order from the best (by `ranking`, or by falling score; equal scores keep file order):

    all             every better one with every worse one         3 completions give 3 pairs
    best_vs_rest    the best with every other                     2
    best_vs_worst   the best with the worst                       1
    adjacent        each with the next                            2

KoChatGPT's published trainers use `all` (its notebook) and `best_vs_rest`. A pair's margin is its score difference where
scores are known, else absent. Then in this order: pairs of equal texts go; ties (equal scores) go, or with `ties: both` become
two pairs of margin 0, one each way; pairs under `min_margin` go; over `max_pairs_per_prompt` those of the largest margins
stay (without margins: the first in the order above). Every pair that goes is counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Literal

from rlhf.data.rows import Row, text_of
from rlhf.recipe.steps import PairsStep

Strategy = Literal["all", "best_vs_rest", "best_vs_worst", "adjacent"]
SAME_TEXT, TIE, MARGIN, MAX_PAIRS = "same text", "tie", "under min_margin", "over max_pairs_per_prompt"


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
    """(better, worse) pairs of an order (order[0] = index of the best)."""
    match strategy:
        case "all":
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
    min_margin: float = 0.0,
    ties: Literal["drop", "both"] = "drop",
    max_pairs: int | None = None,
) -> Pairs:
    """Pairs of one ranking, by the rules above. Give `ranking` (an order) or `scores`.

    Raises ValueError when neither or both are given, and for a `min_margin` that no scores can meet.
    """
    if (ranking is None) == (scores is None):
        raise ValueError("give either ranking (an order of indices) or scores")
    if scores is None and min_margin > 0:
        raise ValueError("min_margin needs scores, and this ranking has only an order")
    order = order_of(scores) if scores is not None else list(ranking or ())
    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    for better, worse in index_pairs(order, strategy):
        margin = scores[better] - scores[worse] if scores is not None else None
        found = [Pair(better, worse, margin)]
        if margin == 0 and ties == "both":
            found.append(Pair(worse, better, margin))
        if texts is not None and texts[better] == texts[worse]:
            dropped[SAME_TEXT] += len(found)
        elif margin == 0 and ties == "drop":
            dropped[TIE] += len(found)
        elif margin is not None and margin < min_margin:
            dropped[MARGIN] += len(found)
        else:
            kept += found
    if max_pairs is not None and len(kept) > max_pairs:
        dropped[MAX_PAIRS] += len(kept) - max_pairs
        kept = sorted(kept, key=lambda p: -(p.margin or 0.0))[:max_pairs]
    return Pairs(kept, dropped, len(kept) + dropped.total())


def pairs_of(row: Row, step: PairsStep) -> tuple[list[Row], Pairs]:
    """A ranking row's preference rows."""
    completions = row["completions"]
    pairs = make_pairs(
        ranking=row.get("ranking"),
        scores=row.get("scores"),
        texts=[text_of(c) for c in completions],
        strategy=step.strategy,
        min_margin=step.min_margin,
        ties=step.ties,
        max_pairs=step.max_pairs_per_prompt,
    )
    rows = []
    for pair in pairs.kept:
        new = {"prompt": row["prompt"], "chosen": completions[pair.better], "rejected": completions[pair.worse]}
        rows.append(new if pair.margin is None else new | {"margin": pair.margin})
    return rows, pairs
