"""The reward functions that come with the program, and what is said of wrong settings."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf import rewards
from rlhf.errors import RecipeError, RlhfError
from rlhf.generation.engine import Completion
from rlhf.generation.reward_scorer import Sample
from rlhf.generation.scorers import load_scorers
from rlhf.recipe.arguments import imported_arguments
from rlhf.recipe.scorers import ScorerSection


def test_length_costs_nothing_up_to_the_target() -> None:
    ids = [[1] * n for n in (0, 4, 6, 8, 12)]
    assert rewards.length([""] * 5, ids, target=4) == [0.0, 0.0, -0.5, -1.0, -2.0]
    texts = ["a b", "a b c"]
    assert rewards.length(texts, [[], []], target=2, unit="words") == [0.0, -0.5]
    assert rewards.length(texts, [[], []], target=4, unit="characters") == [0.0, -0.25]


def test_ended() -> None:
    assert rewards.ended(["a", "b"], [True, False]) == [1.0, 0.0]


def test_regex() -> None:
    texts = ["ab", "xaby", ""]
    assert rewards.regex(texts, pattern="ab") == [1.0, 1.0, 0.0]
    assert rewards.regex(texts, pattern="ab", whole=True) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "valid", "has_a"),
    [
        (' {"a": 1}\n', 1, 1),
        ('{"b": 1}', 1, 0),
        ("[1]", 1, 0),
        ("5", 1, 0),
        ("{'a': 1}", 0, 0),
        ('{"a": NaN}', 0, 0),
        ('{"a": 1} and more', 0, 0),
        ("", 0, 0),
        ("[" * 100_000, 0, 0),
    ],
)
def test_json_valid(text: str, valid: float, has_a: float) -> None:
    assert (rewards.json_valid([text]), rewards.json_valid([text], keys=["a"])) == ([valid], [has_a])


@pytest.mark.parametrize(
    ("text", "gold", "score", "anywhere"),
    [
        ("He has 3 * 24 = 72.\n#### 72", "48/2 = <<48/2=24>>24\n#### 72", 1, 1),
        ("#### 72.", "#### 72", 1, 1),
        ("#### $1,000.00", "#### 1000", 1, 1),
        ("####-5", "#### -5", 1, 1),
        ("#### 71\n#### 72", "#### 72", 1, 1),
        ("#### 72 or 73", "#### 73", 0, 0),
        (r"so \boxed{72}", "72", 1, 1),
        (r"#### 1 \boxed{72}", 72, 1, 1),
        (r"\boxed{1} #### 72", "#### 72", 1, 1),
        (r"\boxed{\$72}", "#### 72", 1, 1),
        ("the answer is 72", "#### 72", 0, 1),
        ("the answer is 72, not 3", "#### 72", 0, 0),
        ("no number", "#### 72", 0, 0),
        ("####", "#### 72", 0, 0),
        ("", "#### 0.5", 0, 0),
        ("#### .5", "#### 0.5", 1, 1),
    ],
)
def test_gsm8k(text: str, gold: Any, score: float, anywhere: float) -> None:
    assert (rewards.gsm8k([text], [gold]), rewards.gsm8k([text], [gold], anywhere=True)) == ([score], [anywhere])


def test_gsm8k_without_a_gold_answer_does_not_apply() -> None:
    assert rewards.gsm8k(["#### 1", "#### 1"], [None, "#### 1"]) == [None, 1.0]


def test_a_gold_answer_without_a_number_is_named() -> None:
    section = ScorerSection(callable="rlhf.rewards:gsm8k")
    (scorer,) = load_scorers([section], None, columns=["answer"])  # type: ignore[arg-type]
    with pytest.raises(RlhfError, match="answer: 'many' is neither a number nor a text with #### and a number"):
        scorer.score([Sample("p", [1], Completion([2], "#### 1", True), {"answer": "many"})])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("length", {}, "rlhf.rewards:length needs target; write kwargs: {target: ...}"),
        ("length", {"target": 0}, "target: must be a whole number from 1, got 0"),
        ("length", {"target": 5, "unit": "letters"}, "unit: must be tokens, words or characters, got 'letters'"),
        ("length", {"taget": 5}, "has no setting 'taget'; did you mean 'target'"),
        ("regex", {"pattern": "("}, r"pattern: '\(' is no regular expression: missing \)"),
        ("regex", {"pattern": 5}, "pattern: 5 is no regular expression"),
        ("regex", {"pattern": "a", "whole": "no"}, "whole: must be true or false, got 'no'"),
        ("json_valid", {"keys": "a"}, "keys: must be a list of texts, got 'a'"),
        ("json_valid", {"keys": 5}, "keys: must be a list of texts, got 5"),
        ("gsm8k", {"anywhere": 1}, "anywhere: must be true or false, got 1"),
        ("ended", {"value": 1}, "has no setting 'value'"),
    ],
)
def test_wrong_settings_are_refused_before_a_model_is_loaded(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        imported_arguments(f"rlhf.rewards:{name}", kwargs)
