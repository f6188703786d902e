"""The `fast` engine, compiled and interpreted: exact decisions on every script, by brute force over all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.dedup import Removal, dedup, fast, jaccard, normalise, shingles
from rlhf.data.dedup.bands import choose_bands
from rlhf.errors import RecipeError
from rlhf.recipe.steps import MatchSection
from tests.data.dedup.oracle import ENGLISH, KOREAN, ODD, brute_force, check_precision, near_duplicates

FAST = MatchSection(engine="fast")


def run(texts: Sequence[str], step: MatchSection = FAST, **options: Any) -> list[Removal]:
    """The removals: with numba, and as if it were not installed; both must agree in every number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "has_numba", lambda: False)
        interpreted = list(dedup(texts, step, **options))
    if fast.has_numba():
        assert list(dedup(texts, step, **options)) == interpreted
    return interpreted


@pytest.mark.parametrize("words", [ENGLISH, KOREAN, ODD], ids=["english", "korean", "odd"])
@pytest.mark.parametrize("length", [3, 12, 60])
def test_the_decisions_of_brute_force(words: str, length: int) -> None:
    texts = near_duplicates(300, length, words, length)
    expected = brute_force(texts, FAST)
    assert 10 < len(expected) < 0.9 * len(texts)
    assert run(texts) == expected


@pytest.mark.parametrize(
    "changed",
    [{"threshold": 0.5}, {"threshold": 0.95}, {"shingle_size": 1}, {"shingle_size": 9}, {"max_chars": 50}],
    ids=str,
)
def test_the_decisions_of_brute_force_with_other_settings(changed: dict[str, float]) -> None:
    step = FAST.model_copy(update=changed)
    for words in (ENGLISH, KOREAN):
        texts = near_duplicates(150, 1, words)
        assert run(texts, step) == brute_force(texts, step) != []


def test_whole_texts_of_any_length() -> None:
    """max_chars: null, and one text a thousand times as long as the others."""
    step = FAST.model_copy(update={"max_chars": None})
    texts = near_duplicates(100, 4)
    texts += [" ".join(near_duplicates(300, 5)), texts[0] + "!", " ".join(near_duplicates(300, 5)[:-2])]
    assert run(texts, step) == brute_force(texts, step)
    assert [r.index for r in run(texts, step)][-2:] == [101, 102]


def test_order_says_which_of_those_alike_stays() -> None:
    texts = near_duplicates(200, 2)
    order = np.random.default_rng(0).permutation(len(texts))
    assert run(texts, order=order) == brute_force(texts, FAST, order.tolist())


def test_references_stay_and_the_others_are_not_compared() -> None:
    texts = ["ab", "AB!", *near_duplicates(200, 3), "ab", "ab"]
    removed = run(texts, reference=80)
    assert removed == brute_force(texts, FAST, reference=80) != []
    assert {r.witness for r in removed} < set(range(80)) and {202, 203} < {r.index for r in removed}
    order = np.random.default_rng(0).permutation(len(texts))
    assert run(texts, order=order, reference=80) == brute_force(texts, FAST, order.tolist(), reference=80)


def test_texts_shorter_than_a_shingle_are_compared_whole() -> None:
    removed = run(["yes", "no", "Yes!", "좋다", "좋아", "", "...", "yes no"])
    assert [(r.index, r.witness) for r in removed] == [(2, 0), (6, 5)]


def test_a_bucket_shared_by_all() -> None:
    """A long preamble puts hundreds of texts that do not match into one bucket; in more than one block of texts."""
    preamble, rng = ENGLISH * 2, np.random.default_rng(0)
    texts = [preamble + "".join(map(chr, rng.integers(97, 123, 90))) for _ in range(600)]
    texts += [texts[500] + "x", texts[3] + "x"]
    assert [(r.index, r.witness) for r in run(texts)] == [(600, 500), (601, 3)]


@pytest.mark.parametrize("length", [6, 20, 100])
def test_pairs_at_the_threshold_are_found(length: int) -> None:
    """Pairs just above 0.8, of short texts too: at least 99.5% are found, as the bands promise."""
    rng = np.random.default_rng(length)
    texts = []
    while len(texts) < 2000:
        text = rng.integers(0x4E00, 0x9000, 5 * length)
        other = text.copy()
        other[: max(1, round(len(text) / 9))] = rng.integers(0x4E00, 0x9000, max(1, round(len(text) / 9)))
        texts += ["".join(map(chr, text)), "".join(map(chr, other))]
    step = FAST.model_copy(update={"shingle_size": 1})
    pairs = [jaccard(*(shingles(normalise(t, 500), 1) for t in texts[i : i + 2])) for i in range(0, len(texts), 2)]
    expected = {2 * i + 1 for i, similarity in enumerate(pairs) if similarity >= 0.8}
    assert len(expected) > 0.5 * len(pairs) and 0.79 < np.mean(pairs) < 0.83
    found = {r.index for r in dedup(texts, step)}
    assert found <= expected and len(found) >= 0.995 * len(expected)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_precision_is_one_on_any_text(data: st.DataObject) -> None:
    pieces = st.sampled_from([*ODD.split(), *ENGLISH.split()[:6], "Σ", "ΑΣ", "ΑΣ.", "a\u0301Σ\u00adb"])
    line = st.lists(pieces | st.text(max_size=4), max_size=12).map(" ".join)
    texts = data.draw(st.lists(line, max_size=12))
    texts += data.draw(st.lists(st.sampled_from(texts), max_size=4)) if texts else []
    step = FAST.model_copy(update={"shingle_size": data.draw(st.sampled_from([1, 2, 5, 8, 9]))})
    removed = run(texts, step)
    check_precision(texts, step, removed)
    assert {r.index for r in brute_force(texts, step) if r.jaccard == 1} <= {r.index for r in removed}


def test_bands() -> None:
    assert choose_bands(0.8, 256) == (23, 6)
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0):
        plan = choose_bands(threshold, 256)
        assert plan.bins <= 256 and plan.found(threshold) >= 0.995 > plan.found(0.3 * threshold)
    assert choose_bands(0.8, 16).bins <= 16


def test_what_does_not_fit() -> None:
    with pytest.raises(RecipeError, match=r"num_perm: 256 is too few .* threshold 0.01; set it to 688 or more"):
        dedup(["a"], FAST.model_copy(update={"threshold": 0.01}))
    with pytest.raises(ValueError, match=r"permutation of 0\.\.1"):
        dedup(["a", "b"], FAST, order=np.array([0, 0]))
    with pytest.raises(ValueError, match="reference is 3, there are 2 texts"):
        dedup(["a", "b"], FAST, reference=3)
