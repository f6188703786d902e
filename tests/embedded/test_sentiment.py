"""The judges: accurate enough, calibrated, quick, and hard to cheat."""

from __future__ import annotations

import time

import pytest

from rlhf.embedded import reviews, sentiment
from rlhf.embedded.sentiment import evaluation_judge, judge_card, preference_judge
from rlhf.errors import RecipeError

JUDGES = [preference_judge, evaluation_judge]


@pytest.mark.parametrize("name", ["preference", "rlhf.embedded.sentiment:evaluation_judge"])
def test_cards_tell_what_was_measured(name: str) -> None:
    card = judge_card(name)
    assert card["accuracy"] > 0.74 and card["accuracy_closing"] > 0.76 and card["accuracy_reviews"] > 0.82
    assert card["expected_calibration_error"] < 0.04
    assert card["agreement"] > 0.80
    assert card["train_rows"] > 40_000 and card["test_rows"] > 5_000


def test_an_unknown_judge_is_named() -> None:
    with pytest.raises(RecipeError, match="preference_judge and evaluation_judge"):
        judge_card("taste")


def test_the_judges_learn_and_are_tested_apart() -> None:
    parts = sentiment._snippets()
    texts = {(judge, split): {s.text for s in parts[judge][split]} for judge in parts for split in parts[judge]}
    names = sorted(texts)
    for index, one in enumerate(names):
        for two in names[index + 1 :]:
            shared = texts[one] & texts[two]  # stock phrases of different reviews, not reviews
            assert len(shared) < 0.002 * len(texts[two]), (one, two, len(shared))
    opening = {r.text for r in reviews.reviews() if r.part == "openings"}
    assert not any(text in opening for texts_of in texts.values() for text in texts_of)


@pytest.mark.parametrize("judge", JUDGES)
def test_praise_is_above_plain_words_above_blame(judge) -> None:
    texts = [
        " I loved every minute of it, a wonderful film.",
        " went to the shop for a loaf.",
        " a boring, terrible mess.",
    ]
    praise, plain, blame = judge(["The film"] * 3, texts)
    assert praise > 1 > plain > -1 > blame


@pytest.mark.parametrize("judge", JUDGES)
def test_the_prompt_does_not_matter(judge) -> None:
    assert judge(["A terrible film", "A great film"], [" it was."] * 2) == judge(["", ""], [" it was."] * 2)


@pytest.mark.parametrize("judge", JUDGES)
def test_repetition_is_not_rewarded(judge) -> None:
    twice, often = judge(["", ""], ["great great", "great " * 200])
    assert twice == often


@pytest.mark.parametrize("judge", JUDGES)
def test_scores_are_bounded_and_empty_texts_neutral(judge) -> None:
    texts = ["great excellent wonderful superb perfect amazing", "worst awful terrible waste boring", "", " \n", "映画"]
    best, worst, *rest = judge([""] * 5, texts)
    assert (best, worst) == (6.0, -6.0)
    assert all(abs(score) < 0.5 for score in rest)
    assert judge([], []) == []
    with pytest.raises(ValueError, match="1 prompts, 2 completions"):
        judge([""], ["a", "b"])


def test_a_thousand_texts_take_well_under_a_second() -> None:
    texts = [f" was a film of {n} minutes, and I can recommend it to all who like long evenings." for n in range(1000)]
    preference_judge([""], ["warm"])
    start = time.process_time()
    preference_judge([""] * 1000, texts)
    assert time.process_time() - start < 0.5
