"""Rankings to pairs: the rules, KoChatGPT's 3-cycles, every call against an oracle, and what chance may depend on."""

from __future__ import annotations

from collections import Counter

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


def test_a_margin_of_just_a_bound_stays_though_floats_fall_beside_it() -> None:
    assert 0.3 - 0.1 < 0.2 and 1.1 - 0.8 > 0.3
    assert len(make_pairs(scores=[0.3, 0.1], min_margin=0.2).kept) == 1
    assert len(make_pairs(scores=[1.1, 0.8], max_margin=0.3).kept) == 1  # 0.30000000000000004
    assert make_pairs(scores=[0.3, 0.1], min_margin=0.2001).dropped == {"under min_margin": 1}
    assert make_pairs(scores=[1.1, 0.8], max_margin=0.2999).dropped == {"over max_margin": 1}


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


STRATEGIES = ("all", "best_vs_rest", "best_vs_worst", "adjacent")


def by_hand(
    scores: list[float], strategy: str, ties: str, low: float, high: float | None
) -> list[set[tuple[int, int]]]:
    """An oracle that sorts nothing: each pair's alternatives, from how many completions stand before each of its two.

    A pair is a set of the orders it may come in: one, or either of two where a coin decides (`ties: half`).
    """
    n = len(scores)
    place = [sum(scores[j] > scores[i] or (scores[j] == scores[i] and j < i) for j in range(n)) for i in range(n)]
    wanted = {
        "all": lambda a, b: a < b,
        "best_vs_rest": lambda a, b: a == 0 < b,
        "best_vs_worst": lambda a, b: a == 0 and b == n - 1,
        "adjacent": lambda a, b: b == a + 1,
    }[strategy]
    out = []
    for i in range(n):
        for j in range(n):
            gap = scores[i] - scores[j]
            if not wanted(place[i], place[j]) or gap < low or (high is not None and gap > high):
                continue
            if gap > 0:
                out.append({(i, j)})
            elif ties == "both":
                out += [{(i, j)}, {(j, i)}]
            elif ties == "half":
                out.append({(i, j), (j, i)})
    return out


@given(
    scores=st.lists(st.integers(0, 4).map(float), min_size=2, max_size=7),
    strategy=st.sampled_from(STRATEGIES),
    ties=st.sampled_from(["drop", "both", "half"]),
    low=st.sampled_from([0.0, 1.0, 2.5]),
    high=st.none() | st.sampled_from([2.5, 3.0]),
    max_pairs=st.none() | st.integers(1, 5),
)
def test_any_scores_against_the_oracle(
    scores: list[float], strategy: str, ties: str, low: float, high: float | None, max_pairs: int | None
) -> None:
    options: dict = {"strategy": strategy, "ties": ties, "min_margin": low, "max_margin": high}
    pairs = make_pairs(scores=scores, max_pairs=max_pairs, **options)
    expected = by_hand(scores, strategy, ties, low, high)
    whole = indices(scores=scores, **options)
    assert len(whole) == len(expected) and len(set(whole)) == len(whole)
    assert all(sum(pair in alternatives for pair in whole) == 1 for alternatives in expected if ties != "both")
    assert set(whole) <= set().union(*expected, set())
    assert pairs.candidates == len(pairs.kept) + pairs.dropped.total()
    assert len(pairs.kept) == min(len(whole), max_pairs or len(whole))
    assert pairs.dropped["over max_pairs_per_prompt"] == len(whole) - len(pairs.kept)
    assert all(p.margin == scores[p.better] - scores[p.worse] for p in pairs.kept)
    left_out = set(whole) - {(p.better, p.worse) for p in pairs.kept}
    assert all(scores[i] - scores[j] <= p.margin for i, j in left_out for p in pairs.kept)


@given(st.permutations(range(5)))
def test_an_order_and_the_scores_that_follow_it_agree(order: list[int]) -> None:
    scores = grades_of({"prompt": "p", "completions": list("abcde"), "ranking": order})
    assert set(indices(ranking=order)) == set(indices(scores=scores))


def test_max_margin() -> None:
    pairs = make_pairs(scores=[1.0, 4.0, 2.5], max_margin=1.5)
    assert pairs.kept == [Pair(1, 2, 1.5), Pair(2, 0, 1.5)]
    assert pairs.dropped == {"over max_margin": 1}
    with pytest.raises(ValueError, match="max_margin needs scores"):
        make_pairs(ranking=[0, 1], max_margin=1.0)


def test_k_belongs_to_random_k() -> None:
    for options in ({"strategy": "random_k"}, {"k": 2}):
        with pytest.raises(ValueError, match="random_k"):
            make_pairs(ranking=[0, 1], **options)  # type: ignore[arg-type]


# --- chance: what is drawn of a row depends on the seed and the row alone ---------------------------------------------


def texts_of(row: dict, step: PairsStep, seed: int = 0) -> list[tuple[str, str]]:
    return [(r["chosen"], r["rejected"]) for r in pairs_of(row, step, seed)[0]]


def row_of(prompt: str, scores: list[float]) -> dict:
    return {"prompt": prompt, "completions": [f"answer {i}" for i in range(len(scores))], "scores": scores}


@given(
    scores=st.lists(st.integers(0, 6).map(float), min_size=2, max_size=7),
    k=st.integers(1, 8),
    ties=st.sampled_from(["drop", "both", "half"]),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_random_k_draws_k_distinct_pairs_whatever_the_order(
    scores: list[float], k: int, ties: str, seed: int, data: st.DataObject
) -> None:
    row = row_of("p", scores)
    step = PairsStep(strategy="random_k", k=k, ties=ties)  # type: ignore[arg-type]
    drawn = texts_of(row, step, seed)
    usable = texts_of(row, PairsStep(ties=ties), seed)  # type: ignore[arg-type]
    assert len(drawn) == len(set(drawn)) == min(k, len(usable))
    assert set(drawn) <= set(usable)
    report = pairs_of(row, step, seed)[1]
    assert report.dropped["not drawn"] == len(usable) - len(drawn)
    assert report.candidates == len(drawn) + report.dropped.total()
    turned = data.draw(st.permutations(range(len(scores))))
    shuffled = {
        "prompt": "p",
        "completions": [row["completions"][i] for i in turned],
        "scores": [scores[i] for i in turned],
    }
    assert set(texts_of(shuffled, step, seed)) == set(drawn)


def test_random_k_draws_every_pair_as_often() -> None:
    """Of 4000 prompts each of the 6 pairs is drawn about a third of the time (2 of 6), for either seed differently."""
    step = PairsStep(strategy="random_k", k=2)
    draws = [
        [texts_of(row_of(f"prompt {i}", [4.0, 3.0, 2.0, 1.0]), step, seed) for i in range(4000)] for seed in (0, 1)
    ]
    for drawn in draws:
        counts = Counter(pair for row in drawn for pair in row)
        assert len(counts) == 6 and counts.total() == 8000
        assert all(abs(n - 8000 / 6) < 4.5 * (4000 * (1 / 3) * (2 / 3)) ** 0.5 for n in counts.values())
    same = sum(a == b for a, b in zip(*draws, strict=True))
    assert abs(same - 4000 / 15) < 4.5 * (4000 * (1 / 15) * (14 / 15)) ** 0.5  # 15 = 6 choose 2


def test_the_coin_of_a_tie_is_fair_and_weighs_as_one_pair() -> None:
    step = PairsStep(ties="half")
    drawn = [texts_of(row_of(f"prompt {i}", [1.0, 1.0]), step) for i in range(2000)]
    assert all(len(pairs) == 1 for pairs in drawn)
    heads = sum(pairs == [("answer 0", "answer 1")] for pairs in drawn)
    assert abs(heads - 1000) < 4.5 * (2000 * 0.25) ** 0.5
    assert pairs_of(row_of("p", [1.0, 1.0]), step)[0][0]["margin"] == 0.0


def test_the_three_cycles_of_kochatgpt_in_random_pairs() -> None:
    """Read as ranks, [1, 2, 0] would call completion 2 the best: no draw may ever say so."""
    better = {(1, 2, 0): {("b", "c"), ("b", "a"), ("c", "a")}, (2, 0, 1): {("c", "a"), ("c", "b"), ("a", "b")}}
    for order, sound in better.items():
        row = {"prompt": "p", "completions": ["a", "b", "c"], "ranking": list(order)}
        found = {pair for seed in range(50) for pair in texts_of(row, PairsStep(strategy="random_k", k=1), seed)}
        assert found == sound
