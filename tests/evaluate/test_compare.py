"""Pair judges: both orders, and what a judge that looks at the place alone is worth."""

from __future__ import annotations

import math

import pytest

from rlhf.errors import RecipeError, RlhfError
from rlhf.evaluate.compare import both_orders, load_pair_judge
from rlhf.recipe.schema import PairJudgeSection
from tests.evaluate.scorers import always_first, more_letters


def test_a_judge_that_always_names_the_first_says_nothing() -> None:
    verdicts = both_orders(always_first, ["p", "p"], ["a", "b"], ["c", "d"])
    assert verdicts.wins.tolist() == [0.5, 0.5]
    assert verdicts.flipped.tolist() == [1.0, 1.0]
    assert verdicts.first.tolist() == [1.0, 1.0]


def test_a_judge_of_the_content_does_not_flip() -> None:
    verdicts = both_orders(more_letters, ["p"] * 3, ["abc", "a", "ab"], ["a", "abc", "cd"])
    assert verdicts.wins.tolist() == [1.0, 0.0, 0.5]
    assert verdicts.flipped.tolist() == [0.0, 0.0, 0.0]
    assert verdicts.first.tolist() == [0.5, 0.5, 0.5]


def test_a_tie_in_one_order_only_is_a_flip_and_three_quarters_of_a_win() -> None:
    def leans(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
        return [1.0 if a == "own" else 0.5 for a in first]

    verdicts = both_orders(leans, ["p"], ["own"], ["other"])
    assert verdicts.wins.tolist() == [0.75]
    assert verdicts.flipped.tolist() == [1.0]


@pytest.mark.parametrize("answer", [[2.0], [-0.1], [math.nan], [0.5, 0.5]])
def test_answers_that_cannot_be_used_are_refused(answer: list[float]) -> None:
    with pytest.raises(RlhfError, match="pair judge returned"):
        both_orders(lambda prompts, first, second: answer, ["p"], ["a"], ["b"])


def test_a_judge_that_is_not_there_is_a_recipe_error() -> None:
    assert load_pair_judge(PairJudgeSection(callable="tests.evaluate.scorers:more_letters")) is more_letters
    for path in ("tests.evaluate.scorers:no_such", "tests.no_such_module:judge"):
        with pytest.raises(RecipeError, match="callable: cannot import"):
            load_pair_judge(PairJudgeSection(callable=path))
