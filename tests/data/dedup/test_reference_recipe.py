"""The `datasketch` engine: the reference recipe's own signatures and decisions, and a witness for every drop."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.dedup import dedup, jaccard, normalise, shingles
from rlhf.recipe.steps import DedupStep
from tests.data.dedup.oracle import ENGLISH as TEXT
from tests.data.dedup.oracle import near_duplicates
from tests.data.support import load_one, real

datasketch = pytest.importorskip("datasketch")
MINHASH = DedupStep(engine="datasketch")


def reference(texts: list[str], step: DedupStep) -> list[int]:
    """The seed recipe, word for word: one update a shingle, query, insert what was not found."""
    index = datasketch.MinHashLSH(threshold=step.threshold, num_perm=step.num_perm)
    removed = []
    for i, text in enumerate(texts):
        cleaned = "".join(c for c in text[:500].lower() if c.isalnum())
        signature = datasketch.MinHash(num_perm=step.num_perm)
        for start in range(len(cleaned) - 4):
            signature.update(cleaned[start : start + 5].encode("utf8"))
        if index.query(signature):
            removed.append(i)
        else:
            index.insert(i, signature)
    return removed


@pytest.mark.parametrize("seed", range(3))
def test_the_same_decisions_as_the_reference(seed: int) -> None:
    texts = near_duplicates(120, seed)
    removed = dedup(texts, MINHASH)
    assert [r.index for r in removed] == reference(texts, MINHASH)
    assert len(removed) > 10


def test_bulk_signatures_are_the_references() -> None:
    words = shingles(normalise(TEXT, 500), 5)
    one = datasketch.MinHash(num_perm=256)
    for word in words:
        one.update(word.encode())
    (bulk,) = datasketch.MinHash.bulk([[w.encode() for w in words]], num_perm=256)
    assert (one.hashvalues == bulk.hashvalues).all()


def test_case_and_punctuation_do_not_matter() -> None:
    a, b = "The film was good, and long!", "the FILM was good; and... long"
    assert [r.index for r in dedup([a, b], MINHASH)] == [1]
    assert not len(dedup([a, b], DedupStep(engine="exact")))


def test_only_the_first_characters_count() -> None:
    head = "".join(random.Random(0).choices("abcdefghij", k=500))
    assert [r.index for r in dedup([head + "x" * 400, head + "y" * 400], MINHASH)] == [1]
    long = [head + "".join(random.Random(s).choices("klmnopqrst", k=3000)) for s in (1, 2)]
    assert not len(dedup(long, MINHASH.model_copy(update={"max_chars": None})))


def test_texts_shorter_than_a_shingle_are_compared_whole() -> None:
    """Their signatures are all alike: the reference drops every one but the first."""
    texts = ["yes", "no", "Yes!", "좋다", "좋아", ""]
    assert [r.index for r in dedup(texts, MINHASH)] == [2]
    assert len(reference(texts, MINHASH)) == 5


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([*near_duplicates(12, 5), "", "a", "abc"]), max_size=12))
def test_every_drop_names_a_kept_earlier_witness(texts: list[str]) -> None:
    removed = list(dedup(texts, MINHASH))
    gone = {r.index for r in removed}
    assert len(gone) == len(removed)
    for r in removed:
        assert r.witness < r.index and r.witness not in gone
        a, b = (shingles(normalise(texts[i], 500), 5) for i in (r.index, r.witness))
        assert r.jaccard == jaccard(a, b)
        assert abs(r.similarity - r.jaccard) < 0.2


def test_real_prompts() -> None:
    """KoChatGPT's prompts: the reference's near-duplicates."""
    texts = [r.data["prompt"] for r in load_one(real("kochatgpt/kochatgpt_3_PPO.jsonl")).rows]
    few = [t for t in texts[:400] if len(normalise(t, 500)) >= 5]
    assert [r.index for r in dedup(few, MINHASH)] == reference(few, MINHASH)
