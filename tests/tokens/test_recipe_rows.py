"""The kind of template that a recipe has once its rows are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.recipe.schema import RECIPE
from rlhf.tokens.recipe_rows import training_rows, with_template
from tests.data.support import lines
from tests.tiny import tiny_tokenizer

TEXT = {"prompt": "the film", "completion": "good"}
MESSAGES = {"messages": [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "good"}]}


@pytest.mark.parametrize(
    ("rows", "asked", "kind"),
    [
        ([[TEXT]], "auto", "plain"),
        ([[MESSAGES]], "auto", "chat"),
        ([[TEXT], [MESSAGES]], "auto", "chat"),
        ([[TEXT]], "chat", "chat"),
    ],
)
@pytest.mark.parametrize("method", ["sft", "ppo", "generate"])
def test_the_rows_settle_the_kind(tmp_path: Path, rows: list, asked: str, kind: str, method: str) -> None:
    sources = [{"path": lines(tmp_path / f"{i}.jsonl", part)} for i, part in enumerate(rows)]
    content: dict[str, Any] = {"method": method, "output_dir": "out", "model": {"name_or_path": "m"}}
    if method == "generate":
        content |= {"prompts": sources, "template": {"kind": asked}}
    else:
        content |= {"data": {"train": sources, "template": {"kind": asked}}}
        content |= {"ppo": {"rewards": [{"callable": "m:f"}]}} if method == "ppo" else {}
    recipe = with_template(RECIPE.validate_python(content))  # type: ignore[type-var]
    assert (recipe if method == "generate" else recipe.data).template.kind == kind  # type: ignore[union-attr]
    if method == "sft":
        assert training_rows(recipe, tiny_tokenizer(), "train").report["template"] == kind  # type: ignore[arg-type]
