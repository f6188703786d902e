"""The `exact` engine: equal bytes, the first in order kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.dedup import Removal, Texts, dedup, exact
from rlhf.recipe.steps import MatchSection
from tests.data.support import load_one, real

EXACT = MatchSection(engine="exact")


def test_the_first_is_kept() -> None:
    assert list(dedup(["a", "b", "a", "A", "b", "a"], EXACT)) == [
        Removal(2, 0, 1.0, 1.0),
        Removal(4, 1, 1.0, 1.0),
        Removal(5, 0, 1.0, 1.0),
    ]


def test_the_first_in_order_is_kept() -> None:
    removed = dedup(["a", "b", "a", "a"], EXACT, order=np.array([3, 1, 0, 2]))
    assert list(removed) == [Removal(0, 3, 1.0, 1.0), Removal(2, 3, 1.0, 1.0)]


def test_references_stay_and_the_others_are_not_compared() -> None:
    assert list(dedup(["a", "a", "b", "b", "a"], EXACT, reference=2)) == [Removal(4, 0, 1.0, 1.0)]


@given(st.lists(st.sampled_from(["", "a", "b", "aa", "ab", "가", "나"]), max_size=20), st.integers(0, 3))
def test_texts_of_one_hash_are_told_apart(texts: list[str], buckets: int) -> None:
    """With a hash of at most three values every table entry collides."""
    first: dict[str, int] = {}
    expected = [Removal(i, w, 1.0, 1.0) for i, t in enumerate(texts) if (w := first.setdefault(t, i)) != i]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "hash", lambda own: len(own) % (buckets + 1), raising=False)
        assert list(dedup(texts, EXACT)) == expected


def test_neither_normalised_nor_cut() -> None:
    step = EXACT.model_copy(update={"max_chars": 3})
    assert not len(dedup(Texts.of(["abc d", "abc e", "ABC d"]), step))


def test_real_prompts() -> None:
    """KoChatGPT's prompts: as many exact duplicates as its README counts."""
    texts = [r.data["prompt"] for r in load_one(real("kochatgpt/kochatgpt_3_PPO.jsonl")).rows]
    assert len(dedup(texts, EXACT)) == len(texts) - len(set(texts)) > 50
