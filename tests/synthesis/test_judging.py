"""score and judge: numbers worked out by hand, bias measured, and what cannot be read left out."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rlhf.data.rows import Row
from rlhf.errors import RecipeError, RlhfError
from rlhf.synthesis import judge, score
from tests.synthesis.support import FakeEngine, fence

ABC: Row = {"prompt": "q", "completions": ["aa", "a", "aaa"], "models": ["x", "y", "z"]}


def longer(prompt: str) -> str:
    a, b = len(fence(prompt, "answer_A")), len(fence(prompt, "answer_B"))
    return f"because\nVerdict: {'A' if a > b else 'B' if b > a else 'tie'}"


def test_scores_are_shares_of_wins() -> None:
    engine = FakeEngine(longer)
    made, report = judge([ABC], engine)
    assert made == [{**ABC, "scores": [0.5, 0.0, 1.0]}]
    assert len(engine.prompts) == 6
    assert engine.choices == [["Verdict: A", "Verdict: B", "Verdict: tie"]]
    assert (report["comparisons"], report["flips"], report["shown_first_wins"]) == (3, 0, 0.5)
    made, report = judge([ABC], FakeEngine(longer), pairs="first_vs_rest")
    assert made[0]["scores"] == [0.5, 0.0, 1.0]
    assert report["comparisons"] == 2


def test_a_verdict_that_changes_with_the_order_is_a_tie() -> None:
    made, report = judge([ABC], FakeEngine(lambda _: "Verdict: A"))
    assert made[0]["scores"] == [0.5, 0.5, 0.5]
    assert (report["flips"], report["flip_rate"], report["shown_first_wins"]) == (3, 1.0, 1.0)
    assert report["outcomes"] == {"tie": 3}

    def half(prompt: str) -> str:  # a tie one way, a win the other: no agreement, so a tie
        return "Verdict: tie" if len(fence(prompt, "answer_A")) > len(fence(prompt, "answer_B")) else "Verdict: B"

    made, report = judge([ABC], FakeEngine(half))
    assert made[0]["scores"] == [0.5, 0.5, 0.5]
    assert report["flip_rate"] == 1.0


def test_a_comparison_with_one_unreadable_order_does_not_count() -> None:
    def mumbles(prompt: str) -> str:
        pair = {fence(prompt, "answer_A"), fence(prompt, "answer_B")}
        return "no idea" if pair == {"aa", "a"} and fence(prompt, "answer_A") == "a" else longer(prompt)

    made, report = judge([ABC], FakeEngine(mumbles), retries=2)
    assert made[0]["scores"] == [0.0, 0.0, 1.0]  # aa and a have lost to aaa only
    assert (report["undecided"], report["unparsed"], report["verdicts_asked"]) == (1, 1, 6)
    assert (report["answers"], report["answers_unparsed"]) == (8, 3)


def test_a_second_try_is_reminded_and_taken() -> None:
    seen: list[str] = []

    def second_time(prompt: str) -> str:
        seen.append(prompt)
        return longer(prompt) if "An earlier answer to this could not be read" in prompt else "hm"

    made, report = judge([ABC], FakeEngine(second_time))
    assert made[0]["scores"] == [0.5, 0.0, 1.0]
    assert (report["unparsed"], report["unparsed_rate"], report["answers_unparsed"], len(seen)) == (0, 0.0, 6, 12)


def test_rationales_are_kept_where_asked() -> None:
    made, _ = judge([ABC], FakeEngine(longer), rationale=True)
    assert made[0]["rationales"][2] == "against 0: because\nagainst 1: because"
    made, _ = score([ABC], FakeEngine(lambda _: "good\nScore: 4"), rationale=True)
    assert made[0]["rationales"] == ["overall: good"] * 3


def test_aspects_are_averaged() -> None:
    made, report = score([ABC], FakeEngine(lambda _: "Score: 3"), aspects=["truthfulness", "honesty"])
    assert made == [{**ABC, "scores": [3.0, 3.0, 3.0]}]
    assert report["marks"] == {"truthfulness": {"3": 3}, "honesty": {"3": 3}}

    def by_aspect(prompt: str) -> str:
        return "Score: 5" if "Rate how true" in prompt else "Score: 2"

    made, report = score([ABC], FakeEngine(by_aspect), aspects=["truthfulness", "honesty", "helpfulness"])
    assert made[0]["scores"] == [3.0, 3.0, 3.0]
    assert report["ratings"] == 9


def test_a_completion_without_a_score_is_left_out_with_its_model() -> None:
    made, report = score([ABC], FakeEngine(lambda p: "?" if fence(p, "answer") == "a" else "Score: 2"))
    assert made == [{"prompt": "q", "completions": ["aa", "aaa"], "models": ["x", "z"], "scores": [2.0, 2.0]}]
    assert report["left_out"] == {"completions without a score": 1}
    assert (report["unparsed"], report["ratings"], report["answers"]) == (1, 3, 4)
    made, report = score([ABC], FakeEngine(lambda p: "?" if fence(p, "answer") != "a" else "Score: 2"))
    assert made == []
    assert report["dropped"] == {"fewer than two of its completions have a score": 1}


def test_old_scores_are_replaced_and_counted() -> None:
    made, report = score([{**ABC, "ranking": [0, 1, 2]}], FakeEngine(lambda _: "Score: 2"))
    assert made == [{**ABC, "scores": [2.0, 2.0, 2.0]}]
    assert report["left_out"] == {"scores or ranking of the row replaced": 1}


def length(prompts: list[str], completions: list[str]) -> list[float]:
    assert prompts == ["q"] * 3
    return [len(c) / 3 for c in completions]


def broken(prompts: list[str], completions: list[str]) -> list[float]:
    return [float("nan")] * len(prompts)


def test_a_callable_scores() -> None:
    made, report = score([ABC], callable="tests.synthesis.test_judging:length")
    assert made == [{**ABC, "scores": [2 / 3, 1 / 3, 1.0]}]
    assert report["mean_score"] == pytest.approx(2 / 3)
    with pytest.raises(RlhfError, match="returned nan"):
        score([ABC], callable="tests.synthesis.test_judging:broken")
    with pytest.raises(RecipeError, match="cannot import"):
        score([ABC], callable="tests.synthesis.test_judging:missing")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of engine, model"),
        ({"engine": "a", "model": "b"}, "exactly one of engine, model"),
        ({"callable": "x"}, "must read module:function"),
        ({"engine": "a", "aspects": ["overall", "honesty"]}, "either"),
        ({"engine": "a", "aspects": ["honesty", "honesty"]}, "different"),
        ({"callable": "a:b", "rationale": True}, "rationale: only an engine"),
        ({"engine": "a", "sampling": {"n": 2}}, "must be 1"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    from rlhf.recipe.synthesis import ScoreStep

    with pytest.raises(ValidationError, match=message):
        ScoreStep.model_validate(settings)
