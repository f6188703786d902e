"""select, and the edit similarity under it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.rows import Row
from rlhf.errors import DataError
from rlhf.synthesis import select
from rlhf.synthesis.similarity import distance, similarity


def by_table(a: str, b: str) -> int:
    """Levenshtein's distance by the textbook's table (Wagner and Fischer 1974)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
    return row[-1]


@settings(max_examples=400)
@given(st.text(alphabet="ab가😀 ", max_size=90), st.text(alphabet="ab가😀 ", max_size=90))
def test_distance_is_the_tables(a: str, b: str) -> None:
    assert distance(a, b) == by_table(a, b)


def test_similarity_of_known_texts() -> None:
    assert distance("kitten", "sitting") == 3
    assert similarity("kitten", "sitting") == pytest.approx(4 / 7)
    assert (similarity("", ""), similarity("", "a"), similarity("abc", "abc"), similarity("abc", "xyz")) == (1, 0, 1, 0)
    assert distance("a" * 3000 + "b", "b" + "a" * 3000) == 2


def ranking(scores: list[float], **more: Any) -> Row:
    return {"prompt": "q", "completions": [f"text {i}" * (i + 1) for i in range(len(scores))], "scores": scores, **more}


def test_best_against_worst() -> None:
    made, report = select([ranking([2.0, 5.0, 1.0], models=["x", "y", "z"])])
    assert made == [{"prompt": "q", "chosen": "text 1" * 2, "rejected": "text 2" * 3, "margin": 4.0}]
    assert (report["chosen_by_model"], report["rejected_by_model"]) == ({"y": 1}, {"z": 1})


def test_an_order_without_scores_has_no_margin() -> None:
    row: Row = {"prompt": "q", "completions": ["a", "b", "c"], "ranking": [2, 0, 1]}
    assert select([row]).rows == [{"prompt": "q", "chosen": "c", "rejected": "b"}]
    with pytest.raises(DataError, match="needs scores"):
        select([row], min_margin=1.0)


def test_random_below_best_draws_evenly_and_never_the_best() -> None:
    rows = [ranking([5.0, 4.0, 5.0, 1.0, 3.0]) | {"prompt": f"q{i}"} for i in range(3000)]
    made, _ = select(rows, rejected="random_below_best", seed=3)
    counts = Counter(row["rejected"] for row in made)
    assert set(counts) == {rows[0]["completions"][i] for i in (1, 3, 4)}
    assert all(abs(n - 1000) < 4.5 * (3000 * 2 / 9) ** 0.5 for n in counts.values())
    chosen = Counter(row["chosen"] for row in made)  # of the two best neither is preferred for its place
    assert set(chosen) == {rows[0]["completions"][i] for i in (0, 2)}
    assert abs(chosen[rows[0]["completions"][0]] - 1500) < 4.5 * 3000**0.5 / 2
    assert select(rows, rejected="random_below_best", seed=3).rows == made
    assert select(rows, rejected="random_below_best", seed=4).rows != made


def test_what_makes_no_pair_is_dropped_by_reason() -> None:
    rows: list[Row] = [
        ranking([1.0]),
        ranking([2.0, 2.0]),
        ranking([2.0, 1.5]),
        {"prompt": "q", "completions": ["same", "same"], "scores": [1.0, 5.0]},
        {"prompt": "q", "completions": ["almost alike", "almost alice"], "scores": [1.0, 5.0]},
        {"prompt": "q", "completions": ["one", "two"], "scores": [1.0, 5.0]},
    ]
    made, report = select(rows, min_margin=1.0, max_similarity=0.8)
    assert made == [{"prompt": "q", "chosen": "two", "rejected": "one", "margin": 4.0}]
    assert report["dropped"] == {
        "fewer than two completions": 1,
        "all scores are equal": 1,
        "under min_margin": 1,
        "chosen and rejected are the same text": 1,
        "over max_similarity": 1,
    }
    assert (report["rows_in"], report["rows_out"]) == (6, 1)


def test_rows_without_scores_are_refused() -> None:
    with pytest.raises(DataError, match="put score or judge before it"):
        select([{"prompt": "q", "completions": ["a", "b"]}])


def test_a_margin_of_just_the_minimum_stays_though_floats_fall_short_of_it() -> None:
    assert 0.3 - 0.1 < 0.2
    row = {"prompt": "q", "completions": ["a", "b"], "scores": [0.3, 0.1]}
    assert len(select([row], min_margin=0.2).rows) == 1
    assert select([row], min_margin=0.2001).report["dropped"] == {"under min_margin": 1}
