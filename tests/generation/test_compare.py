"""`rlhf generate --compare`: each strategy is what it says it is, and what is printed is what was generated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rlhf.cli import app
from rlhf.errors import RecipeError
from rlhf.generation.compare import STRATEGIES, compare, repeated_share, strategies
from rlhf.recipe.schema import GenerateRecipe
from rlhf.recipe.synthesis import TextSampling


@pytest.fixture
def recipe(model: Path, tmp_path: Path) -> Path:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"The film number {i} was [good]"}) + "\n" for i in range(20)))
    file = tmp_path / "generate.yaml"
    file.write_text(
        f"method: generate\noutput_dir: {tmp_path / 'out'}\nmodel: {{name_or_path: {model}}}\n"
        f"prompts: [{{path: {prompts}, format: prompt}}]\nsampling: {{max_new_tokens: 8, stop: [zzz], n: 4}}\n"
    )
    return file


def loaded(file: Path) -> GenerateRecipe:
    from rlhf.recipe.loader import load

    recipe = load(file)
    assert isinstance(recipe, GenerateRecipe)
    return recipe


def test_the_command_prints_every_strategy_and_writes_nothing(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["generate", str(recipe), "--compare", "greedy,beam:2,topk:5"])
    assert result.exit_code == 0, result.output
    assert result.output.count("prompt ") == 3
    for label in ("greedy", "beam:2", "topk:5"):
        assert result.output.count(label) == 3 + 1  # three prompts and the table
    assert "[good]" in result.output and "12 prompts" in result.output
    assert not (recipe.parent / "out").exists()


def test_strategies_as_samplings(recipe: Path) -> None:
    base = {"max_new_tokens": 8, "stop": ["zzz"], "batch_size": 64}
    found = {
        s.label: s.sampling for s in strategies("greedy, beam,beam:8,topk:5,topp,sample:0.3,greedy", loaded(recipe))
    }
    assert found == {
        "greedy": TextSampling(temperature=0.0, **base),
        "beam": TextSampling(temperature=0.0, num_beams=4, **base),
        "beam:8": TextSampling(temperature=0.0, num_beams=8, **base),
        "topk:5": TextSampling(temperature=1.0, top_k=5, **base),
        "topp": TextSampling(temperature=1.0, top_p=0.9, **base),
        "sample:0.3": TextSampling(temperature=0.3, **base),
    }  # fmt: skip


@pytest.mark.parametrize("names", ["gredy", "topk:many", "beam:0", "topp:1.5", "greedy:1", "", ",", "beam:2.5"])
def test_what_is_no_strategy(recipe: Path, names: str) -> None:
    with pytest.raises(RecipeError, match=r"^--compare: "):
        strategies(names, loaded(recipe))
    result = CliRunner().invoke(app, ["generate", str(recipe), "--compare", names])
    assert result.exit_code == 2


def test_measures(recipe: Path) -> None:
    measures = compare(",".join(STRATEGIES), loaded(recipe), Console(quiet=True))
    assert list(measures) == list(STRATEGIES)
    assert all(1 <= m.tokens <= 8 and 0 <= m.ended <= 1 and m.tokens_per_second > 0 for m in measures.values())


def test_repeated_share() -> None:
    assert repeated_share(["a b c a b c"]) == pytest.approx(1 / 4)  # abc bca cab abc
    assert repeated_share(["a b c d", "a b c d"]) == 0
    assert repeated_share(["a b", ""]) == 0


def test_other_recipes_are_sent_to_their_command(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(f"method: data\noutput_dir: {tmp_path}\nsources: [{{path: x.jsonl}}]\n")
    result = CliRunner().invoke(app, ["generate", str(tmp_path / "data.yaml"), "--compare", "greedy"])
    assert result.exit_code == 2 and "rlhf data build" in result.output
