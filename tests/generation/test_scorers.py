"""Reward functions of a user: our form and TRL's, and what is said when one fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import RecipeError, RlhfError
from rlhf.generation.engine import Completion
from rlhf.generation.reward_scorer import Sample
from rlhf.generation.scorers import load_scorers, mean_of, total_scores
from rlhf.recipe.arguments import Columns, columns_of, imported_arguments, written_arguments
from rlhf.recipe.scorers import ScorerSection

SAMPLES = [Sample("one", [1], Completion([5, 6], " a", True)), Sample("two", [2], Completion([7], " bcd", False))]
SOURCE = """
def ours(questions, answers):
    return [len(q) + len(a) for q, a in zip(questions, answers)]

def trl(completions, **kwargs):
    assert sorted(kwargs) == ["completion_ids", "ended", "prompts"]
    return [10 * len(p) + len(c) + len(i) for p, c, i in zip(kwargs["prompts"], completions, kwargs["completion_ids"])]

def trl_named(completions, completion_ids, weight=2.0):
    return [weight * len(ids) for ids in completion_ids]

def needs_a_column(completions, ground_truth, **kwargs):
    return [0.0 for _ in completions]

def fails(prompts, completions):
    return [helper(c) for c in completions]

def helper(completion):
    return float(completion.strip())

def fails_in_a_library(prompts, completions):
    import json
    return [json.loads(c) for c in completions]

def returns_none(completions, **kwargs):
    return [None for _ in completions]

async def waits(completions, **kwargs):
    return [0.0 for _ in completions]

def returns_words(prompts, completions):
    return ["good" for _ in completions]

def ours_with_columns(prompts, completions, answer, other=None, *, bonus=1.0):
    assert other is None
    return [bonus * (c.strip() == a) for c, a in zip(completions, answer)]

def trl_with_columns(completions, answer, **columns):
    assert sorted(columns) == ["completion_ids", "ended", "prompts", "task"]
    return [float(c.strip() == a) if t == "maths" else None for c, a, t in zip(completions, answer, columns["task"])]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(SOURCE)
    return path


def scores(file: Path, name: str) -> list[float]:
    (scorer,) = load_scorers([ScorerSection(callable=f"{file}:{name}")], None)  # type: ignore[arg-type]
    return scorer.score(SAMPLES)


@pytest.mark.parametrize(("name", "expected"), [("ours", [5.0, 7.0]), ("trl", [34.0, 35.0]), ("trl_named", [4.0, 2.0])])
def test_our_form_and_trls(file: Path, name: str, expected: list[float]) -> None:
    assert scores(file, name) == expected


@pytest.mark.parametrize(("name", "line"), [("fails", 19), ("fails_in_a_library", 23)])
def test_the_users_own_line_is_named(file: Path, name: str, line: int) -> None:
    with pytest.raises(RlhfError, match=rf"failed on 2 completions: .*rewards\.py:{line}: \w*Error: "):
        scores(file, name)


@pytest.mark.parametrize(
    ("name", "message"),
    [("needs_a_column", "needs ground_truth; a reward function is given prompts, completions"), ("waits", "is async")],
)
def test_a_function_that_cannot_be_called_is_refused_before_it_is_needed(file: Path, name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_scorers([ScorerSection(callable=f"{file}:{name}")], None)  # type: ignore[arg-type]


def test_a_score_that_is_no_number_is_refused(file: Path) -> None:
    with pytest.raises(RlhfError, match="must return one number for each completion"):
        scores(file, "returns_words")


def test_columns_come_one_value_a_completion(file: Path) -> None:
    """Named columns in our form and TRL's, a setting after the star, and None where a reward does not apply."""
    samples = [
        Sample("one", [1], Completion([5, 6], " a", True), {"answer": "a", "task": "maths"}),
        Sample("one", [1], Completion([7], " bcd", False), {"answer": "a", "task": "maths"}),
        Sample("two", [1], Completion([7], " bcd", False), {"answer": None, "task": "talk"}),
    ]
    ours = ScorerSection(callable=f"{file}:ours_with_columns", kwargs={"bonus": 3})
    theirs = ScorerSection(callable=f"{file}:trl_with_columns", weight=2.0)
    scorers = load_scorers([ours, theirs], None, columns=("answer", "task"))  # type: ignore[arg-type]
    assert [scorer.score(samples) for scorer in scorers] == [[3.0, 0.0, 0.0], [1.0, 0.0, None]]
    assert total_scores(scorers, samples) == (
        [5.0, 0.0, 0.0],
        {"ours_with_columns": [3.0, 0.0, 0.0], "trl_with_columns": [1.0, 0.0, None]},
    )
    assert mean_of([1.0, 0.0, None, None]) == (0.5, 0.5)


def test_a_completion_that_no_reward_applies_to_stops_the_run(file: Path) -> None:
    scorers = load_scorers([ScorerSection(callable=f"{file}:returns_none")], None)  # type: ignore[arg-type]
    with pytest.raises(RlhfError, match=r"no reward applies to the completion ' a' of the prompt 'one': returns_none "):
        total_scores(scorers, SAMPLES)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (
            "ours_with_columns",
            {"bonsu": 2},
            "kwargs: .*ours_with_columns has no setting 'bonsu'; did you mean 'bonus'?",
        ),
        ("ours_with_columns", {"prompts": []}, "has no setting 'prompts'; its settings are answer, other, bonus"),
        ("returns_words", {"bonus": 2}, "has no setting 'bonus'; its settings are none"),
    ],
)
def test_settings_must_be_the_functions_own(file: Path, name: str, kwargs: dict[str, Any], message: str) -> None:
    """The same is said of the function that was imported and of the one that was only read."""
    for arguments in (imported_arguments, written_arguments):
        with pytest.raises(RecipeError, match=message):
            arguments(f"{file}:{name}", kwargs)


@pytest.mark.parametrize(
    "name", ["ours", "trl", "trl_named", "needs_a_column", "ours_with_columns", "trl_with_columns"]
)
def test_reading_a_signature_equals_importing_it(file: Path, name: str) -> None:
    spec = f"{file}:{name}"
    assert written_arguments(spec, {}) == imported_arguments(spec, {})


def test_a_decorated_function_may_take_anything(file: Path) -> None:
    file.write_text("import functools\n\n@functools.cache\ndef f(completions, answer): ...\n")
    assert written_arguments(f"{file}:f", {}) is None
    found = columns_of([ScorerSection(callable=f"{file}:f")], written_arguments)
    assert (dict(found.needed), found.every) == ({}, True)


def test_a_column_that_is_not_there_is_explained() -> None:
    asked = Columns({"answer": "./r.py:f"})
    assert asked.problem_with(["prompt", "answer"], "rows.jsonl") is None
    assert asked.problem_with(["prompt", "answers"], "rows.jsonl") == (
        "./r.py:f needs the column 'answer' of the rows, and rows.jsonl has none; its columns are prompt, answers. "
        "Say which it is, columns: {answer: answers} beside the path, or give the parameter a default value"
    )
