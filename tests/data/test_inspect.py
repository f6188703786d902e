"""What `rlhf inspect` shows is what is trained; a row that breaks an invariant is an error."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlhf.data.dataset import KINDS, tokenize
from rlhf.data.inspect import CLOSE, OPEN, check_rows, inspect
from rlhf.errors import DataError, RecipeError
from rlhf.recipe.schema import RECIPE
from tests.tiny import tiny_tokenizer

from .support import console, lines

PAIR = {"prompt": "the film", "chosen": " was good", "rejected": " was not"}
PPO = {"rewards": [{"callable": "m:f"}]}


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("rlhf.models.load")
    module.load_tokenizer = lambda name: tiny_tokenizer()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rlhf.models.load", module)


def recipe(path: str, method: str = "dpo", data: dict | None = None, **sections: Any) -> Any:
    base = {"method": method, "output_dir": "unused", "model": {"name_or_path": "tiny"}}
    return RECIPE.validate_python(base | {"data": {"train": [{"path": path}]} | (data or {})} | sections)


def shown(path: str, **options: Any) -> str:
    screen, out = console()
    inspect(recipe(path, **options), screen)
    return out.getvalue()


def test_a_pair(tmp_path: Path) -> None:
    text = shown(lines(tmp_path / "r.jsonl", [PAIR | {"margin": 0.5}]))
    assert "\nprompt: the film\n" in text
    assert f"chosen (margin 0.5): {OPEN} was good<|im_end|>{CLOSE}\n" in text
    assert f"rejected: {OPEN} was not<|im_end|>{CLOSE}\n" in text
    assert "checked 2 completions of 1 rows" in text
    assert "preference (recognised by its columns), 1 rows, 1 usable" in text


def test_chat_trains_the_answer_only(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"prompt": "hello", "completion": "I am well"}])
    text = shown(path, method="sft", data={"template": {"kind": "chat"}})
    assert "prompt: <|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n" in text
    assert f"completion: {OPEN}I am well<|im_end|>{CLOSE}" in text


def test_loss_on_all_trains_the_prompt_but_its_first_token(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"prompt": "1 2 3", "completion": " 4"}])
    text = shown(path, method="sft", sft={"loss_on": "all"})
    assert f"prompt: 1{OPEN} 2 3{CLOSE}" in text


def test_colour_instead_of_brackets_on_a_terminal(tmp_path: Path) -> None:
    import io

    from rich.console import Console

    out = io.StringIO()
    inspect(recipe(lines(tmp_path / "r.jsonl", [PAIR])), Console(file=out, force_terminal=True, width=100))
    assert OPEN not in out.getvalue() and "\x1b[32m was good<|im_end|>" in out.getvalue()


def test_rankings_and_prompts(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"prompt": "p", "completions": ["a", "b"], "ranking": [1, 0]}])
    assert f"completion 1 (grade 1): {OPEN}b<|im_end|>{CLOSE}" in shown(path, method="reward")
    assert "prompt 1, 1 tokens: p" in shown(path, method="ppo", ppo=PPO)


def test_a_recipe_that_trains_nothing(tmp_path: Path) -> None:
    screen, _ = console()
    with pytest.raises(RecipeError, match="trains nothing"):
        inspect(RECIPE.validate_python({"method": "data", "output_dir": "x", "sources": [{"path": "y"}]}), screen)


def test_broken_rows_are_found(tmp_path: Path) -> None:
    sound = recipe(lines(tmp_path / "r.jsonl", [PAIR]))
    rows = tokenize(sound.data, tiny_tokenizer(), KINDS["dpo"])
    assert check_rows(rows, sound, tiny_tokenizer()) == 2
    segment = rows.segments[0]
    for broken, reason in (
        (replace(segment, completion_ids=[segment.completion_ids[0], [5]]), "does not train EOS"),
        (replace(segment, prompt_ids=[0, 0, *segment.prompt_ids]), "beginning-of-text token twice"),
        (replace(segment, prompt_ids=[5] * 2000), "longer than max_length"),
    ):
        with pytest.raises(DataError, match=rf"r\.jsonl:1: .*{reason}"):
            check_rows(replace(rows, segments=[broken]), sound, tiny_tokenizer())
