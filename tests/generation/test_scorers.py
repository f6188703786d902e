"""Reward functions of a user: our form and TRL's, and what is said when one fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.errors import RecipeError, RlhfError
from rlhf.generation.engine import Completion
from rlhf.generation.reward_scorer import Sample
from rlhf.generation.scorers import load_scorers
from rlhf.recipe.sections import ScorerSection

SAMPLES = [Sample("one", [1], Completion([5, 6], " a", True)), Sample("two", [2], Completion([7], " bcd", False))]
SOURCE = """
def ours(questions, answers):
    return [len(q) + len(a) for q, a in zip(questions, answers)]

def trl(completions, **kwargs):
    assert sorted(kwargs) == ["completion_ids", "prompts"]
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
        scores(file, "returns_none")
