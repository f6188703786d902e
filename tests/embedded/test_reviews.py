"""The cuts of the film reviews: short, whole, and never in two parts."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlhf import embedded
from rlhf.embedded import reviews
from rlhf.embedded.reviews import Review


@pytest.fixture(scope="module")
def all_reviews() -> list[Review]:
    return list(reviews.reviews())


@pytest.fixture(scope="module")
def openings() -> dict[str, list[dict[str, str]]]:
    folder = Path(embedded.resolve("embedded:film-reviews"))
    return {split: pq.read_table(folder / split).to_pylist() for split in ("train", "test")}


def test_every_review_is_distinct_clean_and_labelled(all_reviews: list[Review]) -> None:
    assert len({review.text for review in all_reviews}) == len(all_reviews) > 33_000
    assert {review.label for review in all_reviews} == {0, 1}
    assert not any("<br" in review.text or "\n" in review.text for review in all_reviews)


def test_openings_have_the_promised_shape(openings: dict[str, list[dict[str, str]]]) -> None:
    assert {split: len(rows) for split, rows in openings.items()} == {"train": 3000, "test": 300}
    rows = openings["train"] + openings["test"]
    assert len({row["prompt"] for row in rows}) == len(rows)
    for row in rows:
        assert row.keys() == {"prompt", "completion"}
        assert 8 <= len(row["prompt"].split()) <= 12 and row["prompt"] == row["prompt"].strip()
        assert 10 <= len(row["completion"].split()) <= 24
        assert row["completion"][0] == " " and row["completion"][1] != " "
        assert row["completion"].rstrip("\"')")[-1] in ".!?"


def test_openings_are_of_both_sentiments(openings: dict[str, list[dict[str, str]]], all_reviews: list[Review]) -> None:
    cut = {reviews.opening(review.text): review.label for review in all_reviews if review.part == "openings"}
    for rows in openings.values():
        positive = sum(cut[row["prompt"], row["completion"]] for row in rows)
        assert 0.4 < positive / len(rows) < 0.6


def test_parts_share_no_review_not_even_a_beginning(all_reviews: list[Review]) -> None:
    beginnings: dict[str, set[str]] = {"openings": set(), "preference": set(), "evaluation": set()}
    for review in all_reviews:
        if review.source == "imdb":
            beginnings[review.part].add(" ".join(review.text.lower().split()[:8]))
    one, two, three = beginnings.values()
    assert min(len(one), len(two), len(three)) > 6000
    assert not one & two and not one & three and not two & three


def test_an_opening_stops_inside_a_sentence_and_completes_it() -> None:
    text = (
        "I saw this with Mr. Smith and his dog at the old cinema on the corner of our street. It was long. " + "X " * 30
    )
    prompt, completion = reviews.opening(text) or ("", "")
    assert text.startswith(prompt + completion)
    assert completion.endswith("our street. It was long.")


@pytest.mark.parametrize(
    "text", ["", "Too short.", "word " * 100, "See http://a.b/c for it, " + "and so on " * 4 + "it ends."]
)
def test_what_makes_no_opening(text: str) -> None:
    assert reviews.opening(text) is None


def test_snippets_are_whole_sentences_in_order() -> None:
    sentence = "This one has exactly eight words in it. "
    review = Review((sentence * 20).strip(), 1, "imdb")
    found = list(reviews.snippets(review))
    assert all(12 <= len(snippet.text.split()) <= 50 and snippet.text.endswith("in it.") for snippet in found)
    assert [snippet.closing for snippet in found] == [False] * (len(found) - 1) + [True]
    assert review.text.startswith(" ".join(snippet.text for snippet in found))
