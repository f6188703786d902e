"""Orders, ranks, comparisons and scores: what each means, and that none is taken for another."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.rows import grades_of
from rlhf.errors import DataError
from tests.data.support import lines, load_one, refused, row

ABC = {"prompt": "p", "completions": ["a", "b", "c"]}
RANKS = {"ranks": "ranks"}


def best_first(data: dict) -> list[str]:
    grades = grades_of(data)
    return [data["completions"][i] for i in sorted(range(len(grades)), key=lambda i: -grades[i])]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_same_preference_in_four_ways(order: tuple[int, ...]) -> None:
    """Best first as `order` says: as ranks that is its inverse permutation, which differs on the two 3-cycles."""
    wanted = ["abc"[i] for i in order]
    ranks = [order.index(i) for i in range(3)]
    comparisons = [[a, b] for a, b in combinations(order, 2)]
    scores = [-r / 2 for r in ranks]
    for one in (0, 1):
        data = row("ranking", {"ranks": "places"}, **ABC, places=[r + one for r in ranks])
        assert best_first(data) == wanted and data["scores"] == [-float(r + one) for r in ranks]
    assert best_first(row("ranking", **ABC, ranking=list(order))) == wanted
    assert best_first(row("ranking", **ABC, comparisons=comparisons[::-1])) == wanted
    assert best_first(row("scored", **ABC, scores=scores)) == wanted
    every = {"ranking": list(order), "comparisons": comparisons, "scores": scores}
    assert row("ranking", **ABC, **every)["scores"] == scores
    is_cycle = list(order) in ([1, 2, 0], [2, 0, 1])
    assert is_cycle == (list(order) != ranks), "a self-inverse order cannot show the difference"


def test_ranks_may_tie_and_must_be_places() -> None:
    assert row("ranking", RANKS, **ABC, ranks=[1, 2, 1])["scores"] == [-1.0, -2.0, -1.0]
    assert row("ranking", RANKS, **ABC, ranks="[2, 0, 1]")["scores"] == [-2.0, 0.0, -1.0], "a CSV cell"
    for ranks in ([1, 2], [2, 3, 4], [1, 2, 5], [-1, 0, 1], [1, 2.0, 3], [True, 2, 3], "x", None):
        assert refused("ranking", RANKS, **ABC, ranks=ranks)[0] == "ranks"


def test_ranks_and_scores_that_disagree() -> None:
    assert row("ranking", RANKS, **ABC, ranks=[1, 2, 2], scores=[3, 1, 2])["scores"] == [3, 1, 2]
    assert refused("ranking", RANKS, **ABC, ranks=[1, 2, 3], scores=[1, 2, 3])[1] == "contradicts scores"
    assert refused("ranking", RANKS, **ABC, ranks=[1, 2, 3], ranking=[2, 1, 0])[1] == "contradicts scores"


def test_ranks_are_read_only_where_the_recipe_says_so(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [ABC | {"ranks": [2, 3, 1]}])
    for options in ({}, {"format": "ranking"}):
        with pytest.raises(DataError, match=r"a ranking is an order(.|\n)*columns: \{ranks: ranks\}"):
            load_one(path, **options)
    loaded = load_one(path, format="ranking", columns=RANKS)
    assert best_first(loaded.rows[0].data) == ["c", "a", "b"]
    assert load_one(path, columns=RANKS).sources[0]["format"] == "ranking"


@pytest.mark.parametrize(
    ("comparisons", "reason"),
    [
        ([[0, 1], [1, 2], [2, 0]], "go round in a circle: 0 > 1 > 2 > 0"),
        ([[0, 1], [1, 0], [0, 2], [1, 2]], "go round in a circle: 0 > 1 > 0"),
        ([[0, 1]], "do not say which is better: completion 0 or 2"),
        ([[0, 1], [0, 2]], "do not say which is better: completion 1 or 2"),
        ([], "do not say which is better: completion 0 or 1"),
        ([[0, 3]], "must be pairs [better, worse] of indices below 3: [0, 3]"),
        ([[1, 1]], "must be pairs [better, worse] of indices below 3: [1, 1]"),
        ([[0, True]], "must be pairs [better, worse] of indices below 3: [0, True]"),
        (["01"], "must be pairs [better, worse] of indices below 3: '01'"),
    ],
)
def test_comparisons_that_make_no_order(comparisons: list, reason: str) -> None:
    assert refused("ranking", **ABC, comparisons=comparisons) == ("comparisons", reason)


@given(st.data())
def test_any_comparisons_give_the_one_order_that_fits_or_none(data: st.DataObject) -> None:
    """Against all permutations: accepted with the order just where exactly one permutation agrees with every comparison."""
    n = data.draw(st.integers(2, 4))
    pairs = data.draw(st.lists(st.permutations(range(n)).map(lambda p: p[:2]), max_size=8))
    fitting = [p for p in permutations(range(n)) if all(p.index(a) < p.index(b) for a, b in pairs)]
    texts = [str(i) for i in range(n)]
    if len(fitting) == 1:
        assert row("ranking", prompt="p", completions=texts, comparisons=pairs)["ranking"] == list(fitting[0])
        return
    field, reason = refused("ranking", prompt="p", completions=texts, comparisons=pairs)
    assert field == "comparisons"
    if fitting:
        a, b = map(int, reason.partition("completion ")[2].split(" or "))
        assert {p.index(a) < p.index(b) for p in fitting} == {True, False}
    else:
        cycle = list(map(int, reason.partition(": ")[2].split(" > ")))
        assert cycle[0] == cycle[-1] and all([a, b] in pairs for a, b in pairwise(cycle))
