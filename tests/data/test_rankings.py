"""Rankings to pairs: the rules, the two 3-cycles that tell an order from ranks, and the balance of every call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.rankings import Pair, make_pairs, pairs_of
from rlhf.data.rows import grades_of
from rlhf.recipe.steps import PairsStep


def indices(**options: object) -> list[tuple[int, int]]:
    return [(p.better, p.worse) for p in make_pairs(**options).kept]


@pytest.mark.parametrize(
    ("ranking", "every"),
    [
        ([1, 2, 0], [(1, 2), (1, 0), (2, 0)]),
        ([2, 0, 1], [(2, 0), (2, 1), (0, 1)]),
        ([2, 1, 0], [(2, 1), (2, 0), (1, 0)]),
    ],
)
def test_an_order_not_ranks(ranking: list[int], every: list[tuple[int, int]]) -> None:
    """Read as ranks, [1, 2, 0] would make completion 2 the best and flip two of its pairs."""
    assert indices(ranking=ranking) == every
    assert indices(ranking=ranking, strategy="best_vs_rest") == every[:2]
    assert indices(ranking=ranking, strategy="best_vs_worst") == [(ranking[0], ranking[2])]
    assert indices(ranking=ranking, strategy="adjacent") == [every[0], every[2]]
    assert all(p.margin is None for p in make_pairs(ranking=ranking).kept)


def test_grades_of_the_three_cycles() -> None:
    assert grades_of({"prompt": "p", "completions": ["a", "b", "c"], "ranking": [1, 2, 0]}) == [0, 2, 1]
    assert grades_of({"prompt": "p", "completions": ["a", "b", "c"], "ranking": [2, 0, 1]}) == [1, 0, 2]


def test_scores_give_margins() -> None:
    assert make_pairs(scores=[1.0, 4.0, 2.5]).kept == [Pair(1, 2, 1.5), Pair(1, 0, 3.0), Pair(2, 0, 1.5)]


def test_min_margin() -> None:
    pairs = make_pairs(scores=[1.0, 4.0, 2.5], min_margin=1.6)
    assert pairs.kept == [Pair(1, 0, 3.0)]
    assert pairs.dropped == {"under min_margin": 2}
    with pytest.raises(ValueError, match="only an order"):
        make_pairs(ranking=[0, 1], min_margin=0.1)


def test_ties() -> None:
    assert indices(scores=[5.0, 5.0, 1.0]) == [(0, 2), (1, 2)]
    assert make_pairs(scores=[5.0, 5.0, 1.0]).dropped == {"tie": 1}
    both = make_pairs(scores=[5.0, 5.0, 1.0], ties="both")
    assert both.kept[:2] == [Pair(0, 1, 0.0), Pair(1, 0, 0.0)]
    assert both.candidates == 4
    assert make_pairs(scores=[5.0, 5.0], ties="both", min_margin=0.1).dropped == {"under min_margin": 2}


def test_max_pairs_keeps_the_largest_margins() -> None:
    pairs = make_pairs(scores=[0.0, 1.0, 10.0], max_pairs=2)
    assert pairs.kept == [Pair(2, 0, 10.0), Pair(2, 1, 9.0)]
    assert pairs.dropped == {"over max_pairs_per_prompt": 1}
    assert indices(ranking=[2, 0, 1], max_pairs=2) == [(2, 0), (2, 1)]


def test_equal_texts_make_no_pair() -> None:
    rows, pairs = pairs_of({"prompt": "p", "completions": ["a", "a", "b"], "ranking": [0, 1, 2]}, PairsStep())
    assert [(r["chosen"], r["rejected"]) for r in rows] == [("a", "b"), ("a", "b")]
    assert pairs.dropped == {"same text": 1}


def test_rows_carry_a_margin_only_where_it_is_known() -> None:
    assert pairs_of({"prompt": "p", "completions": ["a", "b"], "scores": [0.5, 2.0]}, PairsStep())[0] == [
        {"prompt": "p", "chosen": "b", "rejected": "a", "margin": 1.5}
    ]
    assert pairs_of({"prompt": "p", "completions": ["a", "b"], "ranking": [1, 0]}, PairsStep())[0] == [
        {"prompt": "p", "chosen": "b", "rejected": "a"}
    ]


@pytest.mark.parametrize("options", [{}, {"ranking": [0, 1], "scores": [1.0, 0.0]}])
def test_one_of_ranking_and_scores(options: dict) -> None:
    with pytest.raises(ValueError, match="either"):
        make_pairs(**options)


@given(
    scores=st.lists(st.integers(0, 4).map(float), min_size=2, max_size=7),
    strategy=st.sampled_from(["all", "best_vs_rest", "best_vs_worst", "adjacent"]),
    ties=st.sampled_from(["drop", "both"]),
    min_margin=st.sampled_from([0.0, 1.0, 2.5]),
    max_pairs=st.none() | st.integers(1, 5),
)
def test_any_scores(scores: list[float], strategy: str, ties: str, min_margin: float, max_pairs: int | None) -> None:
    pairs = make_pairs(scores=scores, strategy=strategy, ties=ties, min_margin=min_margin, max_pairs=max_pairs)
    n = len(scores)
    expected = {"all": n * (n - 1) // 2, "best_vs_rest": n - 1, "best_vs_worst": 1, "adjacent": n - 1}[strategy]
    assert pairs.candidates == len(pairs.kept) + pairs.dropped.total() >= expected
    assert ties == "both" or pairs.candidates == expected
    assert max_pairs is None or len(pairs.kept) <= max_pairs
    for pair in pairs.kept:
        assert pair.margin == scores[pair.better] - scores[pair.worse] >= min_margin
        assert pair.margin > 0 or ties == "both"
    assert len({(p.better, p.worse) for p in pairs.kept}) == len(pairs.kept)


@given(st.permutations(range(5)))
def test_an_order_and_the_scores_that_follow_it_agree(order: list[int]) -> None:
    scores = grades_of({"prompt": "p", "completions": list("abcde"), "ranking": order})
    assert set(indices(ranking=order)) == set(indices(scores=scores))
