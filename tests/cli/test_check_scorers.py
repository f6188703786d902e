"""`rlhf check` of rewards: settings of functions, columns of the rows, ensembles and servers. It runs no function of a user's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.support import PPO, recipe, rlhf, workplace

__all__ = ["workplace"]
SCORES = (
    "raise SystemExit('check must not run this')\n"
    "def plain(prompts, completions): ...\n"
    "def gold(completions, answer, *, bonus=1.0): ...\n"
    "def everything(completions, **columns): ...\n"
)
ROWS = [{"question": "q", "answer": "#### 1"}, {"question": "r", "answer": "#### 2"}]
SOURCE = "{path: rows.jsonl, format: prompt, columns: {prompt: question}}"
TEXT = PPO.replace("rows.jsonl", SOURCE)


@pytest.fixture(autouse=True)
def _files(workplace: None) -> None:
    Path("scores.py").write_text(SCORES)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


@pytest.mark.parametrize(
    "changes",
    [
        ["ppo.rewards=[{callable: scores:gold}]"],
        ["ppo.rewards=[{callable: scores:gold, kwargs: {bonus: 2}}]"],
        ["ppo.rewards=[{callable: scores:everything}]"],
        ["ppo.rewards=[{callable: 'rlhf.rewards:gsm8k'}, {callable: 'rlhf.rewards:length', kwargs: {target: 50}}]"],
        ["ppo.rewards=[{url: 'http://localhost:9000/', columns: [answer]}]"],
        ["ppo.rewards=[{callable: scores:gold}]", "data.train.0.columns={prompt: question, answer: question}"],
        ["ppo.rewards=[{callable: scores:everything}]", "data.train.0.columns={prompt: question, any: answer}"],
    ],
)
def test_what_fits_is_accepted(changes: list[str]) -> None:
    result = rlhf("check", recipe(TEXT), *changes)
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_column_that_a_reward_reads_is_no_answer_that_is_thrown_away() -> None:
    """Rows of a prompt and an answer are prompts then, without `format`; else the answer is not passed over in silence."""
    text = PPO.replace("rows.jsonl", "{path: rows.jsonl, columns: {prompt: question}}")
    assert rlhf("check", recipe(text.replace("scores:score", "scores:gold"))).exit_code == 0
    result = rlhf("check", recipe(text.replace("scores:score", "scores:plain")))
    assert result.exit_code == 2 and "no format fits the columns found: question, answer" in result.stderr


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            "ppo.rewards.0={callable: scores:gold, kwargs: {bonsu: 2}}",
            "ppo.rewards.0.kwargs: scores:gold has no setting 'bonsu'; did you mean 'bonus'?",
        ),
        (
            "ppo.rewards.0={callable: 'rlhf.rewards:regex', kwargs: {pattern: '('}}",
            "ppo.rewards.0.kwargs: rlhf.rewards:regex: pattern: '(' is no regular expression: "
            "missing ), unterminated subpattern at position 0",
        ),
        (
            "ppo.rewards.0={callable: 'rlhf.rewards:length'}",
            "ppo.rewards.0.kwargs: rlhf.rewards:length needs target; write kwargs: {target: ...}",
        ),
        (
            "ppo.rewards.0={models: [nowhere/a/final, nowhere/b/final]}",
            "ppo.rewards.0.models.0: no such folder: nowhere/a/final",
        ),
    ],
)
def test_what_does_not_fit_is_named(change: str, problem: str) -> None:
    text = TEXT.replace("scores:score", "scores:gold")
    result = rlhf("check", recipe(text), change)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0] == f"override '{change}': {problem}"


def test_a_name_that_nobody_reads_is_no_column() -> None:
    text = TEXT.replace("scores:score", "scores:gold")
    result = rlhf("check", recipe(text), "data.train.0.columns={prompt: question, gold: question}")
    assert result.exit_code == 2
    assert "rows.jsonl: columns: gold is no field of format prompt; it has answer, prompt" in result.stderr


@pytest.mark.parametrize("who", ["scores:gold", "http://localhost:9000/"])
def test_a_column_that_no_row_has_is_named_with_those_there_are(who: str) -> None:
    Path("rows.jsonl").write_text('{"question": "q", "answers": "1"}\n')
    reward = f"{{callable: {who}}}" if who.startswith("scores") else f"{{url: '{who}', columns: [answer]}}"
    result = rlhf("check", recipe(TEXT.replace("{callable: scores:score}", reward)))
    key = "callable" if who.startswith("scores") else "columns"
    assert result.exit_code == 2
    assert result.stderr == (
        f"r.yaml:5: ppo.rewards.0.{key}: {who} needs the column 'answer' of the rows, and rows.jsonl has none; its columns "
        "are question, answers, prompt. Say which it is, columns: {answer: answers} beside the path, or give the parameter "
        "a default value\n"
    )


def test_a_missing_column_of_the_eval_rows_is_found_too() -> None:
    Path("held.jsonl").write_text('{"question": "q"}\n')
    text = TEXT.replace("scores:score", "scores:gold")
    result = rlhf("check", recipe(text), "data.eval={path: held.jsonl, format: prompt, columns: {prompt: question}}")
    assert result.exit_code == 2
    assert (
        "ppo.rewards.0.callable: scores:gold needs the column 'answer' of the rows, and held.jsonl has none"
        in result.stderr
    )


def test_a_step_score_gives_no_columns() -> None:
    """Said before the steps in front of it have asked a model."""
    text = (
        "method: data\noutput_dir: out\nsources: {path: rows.jsonl, format: prompt, columns: {prompt: question}}\n"
        "engines: {small: {engine: transformers, model: {name_or_path: embedded:smollm2-135m-instruct}}}\n"
        "steps:\n  - generate: {engine: small, into: completions, sampling: {n: 2}}\n  - score: {callable: scores:gold}\n"
        "  - pairs: {}\n"
    )
    result = rlhf("check", recipe(text))
    assert result.exit_code == 2
    assert result.stderr == (
        "r.yaml:7: steps.1.score.callable: scores:gold needs answer; the step score gives a function prompts, completions, "
        "completion_ids, ended, and no column of the rows\n"
    )
