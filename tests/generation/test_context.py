"""A `max_new_tokens` that leaves no room, other templates, and launchers: refused or said before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.cli.check import check
from rlhf.errors import RecipeError, SetupError
from rlhf.generation.context import config_context
from rlhf.generation.run import generate
from rlhf.recipe.loader import read
from rlhf.recipe.schema import RECIPE, GenerateRecipe
from rlhf.runs.start import run_recipe

RECIPES = {
    "generate": "model: {name_or_path: MODEL}\nprompts: [{path: p.jsonl}]\nsampling: {max_new_tokens: N}\n",
    "eval": "models: [{name: A, name_or_path: MODEL}]\nprompts: [{path: p.jsonl}]\nsampling: {max_new_tokens: N}\n"
    "scorers: [{callable: json:dumps}]\n",
    "ppo": "model: {name_or_path: MODEL}\ndata: {train: [{path: p.jsonl}]}\n"
    "ppo: {rewards: [{callable: json:dumps}], sampling: {max_new_tokens: N}}\n",
}


@pytest.mark.parametrize("method", RECIPES)
def test_check_finds_new_tokens_that_leave_no_room(
    method: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"prompt": "hello"}\n')

    def found(new_tokens: int) -> list[str]:
        text = f"method: {method}\noutput_dir: out\n" + RECIPES[method]
        Path("r.yaml").write_text(text.replace("MODEL", str(model)).replace("N}", f"{new_tokens}}}"))
        return check(read("r.yaml")).problems

    assert found(255) == []
    (problem,) = found(256)
    assert "sampling.max_new_tokens: 256 leaves no room for a prompt in the 256 positions of" in problem


@pytest.mark.parametrize(
    ("config", "positions"),
    [({"n_positions": 1024}, 1024), ({"text_config": {"max_position_embeddings": 77}}, 77), ({"d_model": 5}, None)],
)
def test_the_positions_that_a_config_gives(tmp_path: Path, config: dict[str, Any], positions: int | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert config_context(str(tmp_path)) == positions


def recipe(tmp_path: Path, model: Path, **sections: Any) -> GenerateRecipe:
    (tmp_path / "p.jsonl").write_text('{"prompt": "hello"}\n{"prompt": "The film was"}\n')
    content: dict[str, Any] = {
        "method": "generate",
        "output_dir": str(tmp_path / "out"),
        "model": {"name_or_path": str(model)},
        "prompts": [{"path": str(tmp_path / "p.jsonl")}],
    }
    made = RECIPE.validate_python(content | sections)
    assert isinstance(made, GenerateRecipe)
    return made


def test_a_prompt_without_room_is_found_before_the_model_is_loaded(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("rlhf.generation.run.load_policy", loaded)
    with pytest.raises(RecipeError, match="exceeds the 256 positions"):
        generate(recipe(tmp_path, model, sampling={"max_new_tokens": 255}))


def test_generate_refuses_several_processes(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SetupError, match="method: generate runs in one process, and the launcher started 2"):
        run_recipe(recipe(tmp_path, model))
    assert not (tmp_path / "out").exists()
