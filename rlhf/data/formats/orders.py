"""The ways to say which completion is better: an order, ranks, comparisons, scores. They are never taken for one another.

    ranking      [2, 0, 1]            an order of indices: completion 2 is the best, then 0, then 1
    ranks        [2, 3, 1]            a place for each completion: completion 2 is the best, then 0, then 1
    comparisons  [[2, 0], [0, 1]]     pairs of indices, the better one first
    scores       [0.3, 0.1, 0.9]      a number for each completion, higher is better

A list of the numbers 0..n-1 could be either of the first two, and on a 3-cycle they say different things, so `ranks` are read only where
the recipe says `columns: {ranks: NAME}`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from rlhf.data.formats.fields import Fields, shown
from rlhf.errors import DataError

RANKS = (
    "ranks give each completion's place; a ranking is an order: ranking[0] is the index of the best completion, "
    "then the next. Write the order into a column `ranking`, or, if these are ranks with 1 or 0 the best, "
    "say format: ranking, columns: {ranks: ranks}"
)


def order(f: Fields, n: int) -> list[int]:
    """`ranking`: the indices of n completions, best first. Raises for whatever is not a permutation."""
    if f.columns.get("ranking") == "ranks" or ("ranks" in f.data and not f.has("ranking")):
        raise _error(f, RANKS)
    found = f.list("ranking")
    if any(isinstance(i, bool) or not isinstance(i, int) for i in found) or sorted(found) != list(range(n)):
        raise f.error("ranking", f"is not an order of the {n} completions' indices: {shown(found)}")
    return list(found)


def scores_of_ranks(f: Fields, n: int) -> list[float]:
    """`ranks` as scores: -rank, so that equal ranks stay a tie. Raises for what cannot be places among n."""
    ranks = f.list("ranks")
    if any(isinstance(r, bool) or not isinstance(r, int) for r in ranks):
        raise f.error("ranks", f"must be whole numbers: {shown(ranks)}")
    if len(ranks) != n:
        raise f.error("ranks", f"needs one rank a completion: {len(ranks)} for {n}")
    if min(ranks) not in (0, 1) or max(ranks) - min(ranks) > n - 1:
        raise f.error("ranks", f"must start at 1 or 0 for the best and not pass the {n} completions: {shown(ranks)}")
    return [-float(r) for r in ranks]


def scores(f: Fields, values: list[Any], n: int) -> list[float]:
    """One finite number for each of n completions."""
    found = [f.number("scores", value) for value in values]
    if len(found) != n:
        raise f.error("scores", f"needs one score a completion: {len(found)} for {n}")
    return found


def agree(f: Fields, by_order: list[int], by_score: list[float]) -> None:
    """Raises where an order puts a lower score before a higher one."""
    if any(by_score[a] < by_score[b] for a, b in pairwise(by_order)):
        raise f.error("ranking", "contradicts scores")


def order_of_comparisons(f: Fields, n: int) -> list[int]:
    """The only order that all comparisons [better, worse] agree with. Raises for a cycle, and where two orders would do."""
    better: list[set[int]] = [set() for _ in range(n)]  # better[i]: what i beats
    for pair in f.list("comparisons"):
        if not _is_pair(pair, n):
            raise f.error("comparisons", f"must be pairs [better, worse] of indices below {n}: {shown(pair)}")
        better[pair[0]].add(pair[1])
    found: list[int] = []
    left = set(range(n))
    while left:
        best = sorted(i for i in left if not any(i in better[j] for j in left))
        if not best:
            cycle = " > ".join(map(str, _cycle(better, left)))
            raise f.error("comparisons", f"go round in a circle: {cycle}")
        found += best
        left.difference_update(best)
    for a, b in pairwise(found):  # in the only order, each was compared with the next
        if b not in better[a]:
            raise f.error("comparisons", f"do not say which is better: completion {a} or {b}")
    return found


def _is_pair(pair: Any, n: int) -> bool:
    whole = isinstance(pair, list) and len(pair) == 2 and all(type(i) is int and 0 <= i < n for i in pair)
    return whole and pair[0] != pair[1]


def _cycle(better: list[set[int]], among: set[int]) -> list[int]:
    """A closed walk among indices each of which is beaten by another of them, from the better to the worse, as `[a, b, ..., a]`."""
    path = [min(among)]
    while True:
        winner = min(j for j in among if path[-1] in better[j])
        if winner in path:
            closed = [*path[path.index(winner) :], winner]
            return closed[::-1]
        path.append(winner)


def _error(f: Fields, reason: str) -> DataError:
    return f.located.error(reason, "ranks")
