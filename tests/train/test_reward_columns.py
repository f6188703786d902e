"""Columns of the rows as far as the rewards: from file to score, through the cache, a resume, and two processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf.errors import CheckpointError, RecipeError, RlhfError
from rlhf.generation.run import generate
from rlhf.recipe.loader import dump
from rlhf.recipe.schema import RECIPE
from rlhf.recipe.training import TrainRecipe
from rlhf.train.run import train
from tests.train.conftest import metrics_of
from tests.train.ppo_support import Folders, Recipes, iteration, stage_of
from tests.train.test_resume import assert_same, quiet, state_of
from tests.two_processes import in_two

ROWS = [
    {"question": f"{start} {i}", "answer": f"#### {i}", "letter": "aeioug"[i], "level": i if i % 2 else None}
    for i, start in enumerate(["The film was", "I like", "the answer is", "you are", "It is", "there is"])
]
FUNCTIONS = """
import json, os
SEEN = []

def by_letter(completions, letter, **columns):
    SEEN.append({"prompts": columns["prompts"], "letter": letter, "answer": columns["answer"], "level": columns["level"]})
    if log := os.environ.get("SEEN"):
        with open(f"{log}-{os.environ['RANK']}", "a") as file:
            file.write(json.dumps(SEEN[-1]) + chr(10))
    return [float(c.count(l)) for c, l in zip(completions, letter)]

def named(prompts, completions, gold, level=None, *, bonus=1.0):
    SEEN.append({"prompts": prompts, "gold": gold, "level": level})
    return [bonus * len(c) for c in completions]

def odd(completions, level):
    return [None if l is None else float(l) for l in level]
"""
Make = Callable[..., TrainRecipe]


@pytest.fixture
def functions(tmp_path: Path) -> str:
    path = tmp_path / "functions.py"
    path.write_text(FUNCTIONS)
    return str(path)


@pytest.fixture
def make(recipe_of: Recipes, ending: Callable[..., str], rows: dict[str, str], tmp_path: Path, functions: str) -> Make:
    """GRPO or PPO on `ROWS`; the second run of one test may change the rows."""

    def recipe(method: str = "grpo", names: tuple[Any, ...] = ("by_letter",), **sections: Any) -> TrainRecipe:
        path = Path(rows.setdefault(method, str(tmp_path / "columns.jsonl")))
        path.write_text("".join(json.dumps(row) + "\n" for row in sections.pop("rows", ROWS)))
        source = {
            "path": str(path),
            "format": sections.pop("format", "prompt"),
            "columns": {"prompt": "question"} | sections.pop("columns", {}),
        }
        rewards = [r if isinstance(r, dict) else {"callable": f"{functions}:{r}"} for r in names]
        section = {
            "rollout_batch_size": 4, "num_ppo_epochs": 2, "rewards": rewards, "sampling": {"max_new_tokens": 6, "n": 2},
        }  # fmt: skip
        return recipe_of(
            method, ending(5.0), data={"train": [source], "max_length": 64}, **({method: section} | sections)
        )

    return recipe


def seen(stage: Any, spec: str) -> Any:
    from rlhf.recipe.callables import import_callable

    return import_callable(spec).__globals__["SEEN"]


def of(key: str, prompts: list[str]) -> list[Any]:
    return [next(row[key] for row in ROWS if row["question"] == prompt) for prompt in prompts]


def test_each_column_is_repeated_for_each_completion_of_its_prompt(make: Make, functions: str) -> None:
    stage = stage_of(make())
    iteration(stage)
    (given,) = seen(stage, f"{functions}:by_letter")
    assert len(given["prompts"]) == 8 and len(set(given["prompts"])) == 4
    assert given["prompts"][0::2] == given["prompts"][1::2]
    for key in ("letter", "answer", "level"):
        assert given[key] == of(key, given["prompts"])


def test_rows_of_a_prompt_and_an_answer_need_no_format(make: Make) -> None:
    rows = [{"question": row["question"], "answer": row["answer"]} for row in ROWS]
    recipe = make("grpo", ({"callable": "rlhf.rewards:gsm8k"},), rows=rows, format=None)
    train(recipe)  # as a command does: the template's kind is settled first
    assert len(metrics_of(recipe)) == 4


def test_a_column_may_be_mapped_to_another_name_and_settings_come_from_the_recipe(make: Make, functions: str) -> None:
    plain = make("ppo", ("named",), columns={"gold": "answer"})
    stage = stage_of(plain)
    iteration(stage)
    (given,) = seen(stage, f"{functions}:named")
    assert (given["gold"], given["level"]) == (of("answer", given["prompts"]), of("level", given["prompts"]))
    tripled = stage_of(
        make("ppo", ({"callable": f"{functions}:named", "kwargs": {"bonus": 3.0}},), columns={"gold": "answer"})
    )
    iteration(tripled)
    assert tripled.measured["score"] == pytest.approx(3 * stage.measured["score"])


def test_a_reward_that_applies_to_some_is_logged_for_those_alone(make: Make, functions: str) -> None:
    stage = stage_of(make("grpo", ("odd", "by_letter")))
    iteration(stage)
    levels = [level for level in seen(stage, f"{functions}:by_letter")[-1]["level"] if level is not None]
    assert stage.measured["score/odd"] == pytest.approx(sum(levels) / len(levels))
    both = stage.measured["score/odd"] * len(levels) / 8 + stage.measured["score/by_letter"]
    assert stage.measured["score"] == pytest.approx(both)


def test_a_completion_without_any_reward_stops_the_run(make: Make) -> None:
    with pytest.raises(RlhfError, match=r"no reward applies to the completion .*: odd returned None"):
        train(make("grpo", ("odd",)))


def test_a_column_that_is_not_there_stops_the_run_before_a_model_is_loaded(make: Make, rows: dict[str, str]) -> None:
    message = (
        r"functions.py:named needs the column 'gold' of the rows, and .*columns.jsonl has none; "
        r"its columns are question, answer, letter, level, prompt"
    )
    with pytest.raises(RecipeError, match=message):
        train(make("grpo", ("named",)))


def test_prompts_that_differ_in_a_column_are_two(make: Make) -> None:
    twice = [*ROWS, ROWS[0] | {"letter": "z"}, ROWS[1]]
    assert len(stage_of(make(rows=twice)).prompts) == 7
    other_levels = [*ROWS, *(row | {"level": 9} for row in ROWS)]  # which no parameter names
    assert len(stage_of(make(rows=other_levels)).prompts) == 6


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_resuming_with_columns_is_bitwise_equal(lora: Any, make: Make) -> None:
    options: dict[str, Any] = {"lora": lora, "checkpoint": {"save_steps": 2, "save_total_limit": None}}
    whole, broken = (make(out=out, training={"max_steps": 4}, **options) for out in ("whole", "broken"))
    train(whole)
    shutil.copytree(whole.output_dir, broken.output_dir)
    last = Path(broken.output_dir) / "checkpoints/step-000004"
    shutil.rmtree(last)
    torch.manual_seed(123)
    train(broken)
    assert_same(state_of(Path(whole.output_dir) / "checkpoints/step-000004"), state_of(last))
    assert quiet(metrics_of(whole)) == quiet(metrics_of(broken))


def test_another_gold_answer_is_another_run(make: Make) -> None:
    options: dict[str, Any] = {"checkpoint": {"save_steps": 1}, "out": "changed"}
    train(make(training={"max_steps": 1}, **options))
    with pytest.raises((CheckpointError, RecipeError), match="rows"):
        train(make(training={"max_steps": 2}, rows=[row | {"letter": "q"} for row in ROWS], **options))


def test_two_processes_share_the_prompts_with_their_columns(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    recipe = make("ppo", training={"max_steps": 2})
    path = tmp_path / "two.yaml"
    path.write_text(dump(recipe))  # type: ignore[arg-type]
    in_two("rlhf", "train", str(path))
    each = [[json.loads(line) for line in Path(f"{tmp_path}/seen-{rank}").read_text().splitlines()] for rank in (0, 1)]
    for calls in each:
        for given in calls:
            assert len(given["prompts"]) == 4
            assert (given["letter"], given["answer"]) == (
                of("letter", given["prompts"]),
                of("answer", given["prompts"]),
            )
    prompts = [{p for call in calls[:1] for p in call["prompts"]} for calls in each]
    assert len(prompts[0] | prompts[1]) == 4 and not prompts[0] & prompts[1]
    assert load_file(Path(recipe.output_dir) / "final/model.safetensors")


def test_generate_scores_with_columns_too(make: Make, model_folder: Folders, tmp_path: Path, functions: str) -> None:
    source = make().data.train[0]
    content = {
        "method": "generate", "output_dir": str(tmp_path / "made"), "model": {"name_or_path": model_folder("llama")},
        "prompts": [source.model_dump(exclude_none=True)], "sampling": {"n": 2, "max_new_tokens": 4},
        "scorers": [{"callable": f"{functions}:by_letter"}, {"callable": "rlhf.rewards:gsm8k"}],
    }  # fmt: skip
    report = generate(RECIPE.validate_python(content))  # type: ignore[arg-type]
    assert report["mean_score"].keys() == {"by_letter", "gsm8k"}
    given = seen(None, f"{functions}:by_letter")[-1]
    assert given["letter"] == of("letter", [p for row in ROWS for p in [row["question"]] * 2])
