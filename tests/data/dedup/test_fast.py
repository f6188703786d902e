"""The `fast` engine, interpreted: exact decisions on every script, by brute force over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.dedup import dedup
from rlhf.errors import RecipeError
from rlhf.recipe.steps import MatchSection

from .oracle import ENGLISH, KOREAN, ODD, brute_force, check_precision, near_duplicates

FAST = MatchSection(engine="fast")


@pytest.mark.parametrize("words", [ENGLISH, KOREAN, ODD])
@pytest.mark.parametrize("length", [3, 12, 60])
def test_the_decisions_of_brute_force(words: str, length: int) -> None:
    texts = near_duplicates(300, length, words, length)
    expected = brute_force(texts, FAST)
    assert 10 < len(expected) < 0.9 * len(texts)
    assert list(dedup(texts, FAST)) == expected


@pytest.mark.parametrize(
    "step", [{"threshold": 0.5}, {"threshold": 0.95}, {"shingle_size": 1}, {"shingle_size": 9}, {"max_chars": 50}]
)
def test_the_decisions_of_brute_force_with_other_settings(step: dict[str, float]) -> None:
    match = FAST.model_copy(update=step)
    for words in (ENGLISH, KOREAN):
        texts = near_duplicates(150, 1, words)
        assert list(dedup(texts, match)) == brute_force(texts, match) != []


def test_order_says_which_of_those_alike_stays() -> None:
    texts = near_duplicates(200, 2)
    order = np.random.default_rng(0).permutation(len(texts))
    assert list(dedup(texts, FAST, order=order)) == brute_force(texts, FAST, order.tolist())


def test_references_stay_and_the_others_are_not_compared() -> None:
    texts = ["ab", "AB!", *near_duplicates(200, 3), "ab", "ab"]
    removed = list(dedup(texts, FAST, reference=80))
    assert removed == brute_force(texts, FAST, reference=80) != []
    assert {r.witness for r in removed} < set(range(80)) and {202, 203} < {r.index for r in removed}
    order = np.random.default_rng(0).permutation(len(texts))
    expected = brute_force(texts, FAST, order.tolist(), reference=80)
    assert list(dedup(texts, FAST, order=order, reference=80)) == expected


def test_texts_shorter_than_a_shingle_are_compared_whole() -> None:
    assert [(r.index, r.witness) for r in dedup(["yes", "no", "Yes!", "좋다", "좋아", "", "...", "yes no"], FAST)] == [
        (2, 0),
        (6, 5),
    ]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_precision_is_one_on_any_text(data: st.DataObject) -> None:
    pieces = st.sampled_from([*ODD.split(), *ENGLISH.split()[:6], "Σ", "ΑΣ", "ΑΣ.", "a\u0301Σ\u00adb"])
    line = st.lists(pieces | st.text(max_size=4), max_size=12).map(" ".join)
    texts = data.draw(st.lists(line, max_size=12))
    texts += data.draw(st.lists(st.sampled_from(texts), max_size=4)) if texts else []
    step = FAST.model_copy(update={"shingle_size": data.draw(st.sampled_from([1, 2, 5, 8, 9]))})
    removed = list(dedup(texts, step))
    check_precision(texts, step, removed)
    assert {r.index for r in brute_force(texts, step) if r.jaccard == 1} <= {r.index for r in removed}


def test_what_does_not_fit() -> None:
    with pytest.raises(RecipeError, match=r"num_perm: 256 is too few .* threshold 0.01; it takes at least 688"):
        dedup(["a"], FAST.model_copy(update={"threshold": 0.01}))
    with pytest.raises(ValueError, match=r"permutation of 0\.\.1"):
        dedup(["a", "b"], FAST, order=np.array([0, 0]))
    with pytest.raises(ValueError, match="reference is 3, there are 2 texts"):
        dedup(["a", "b"], FAST, reference=3)
