"""Functions that a recipe names, by module or by file."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.errors import RecipeError
from rlhf.recipe.callables import describe, import_callable, source_of, why_missing

SOURCE = "from neighbour import FACTOR\n\ndef score(prompts, completions):\n    return [FACTOR for _ in completions]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "reward.py").write_text(SOURCE)
    (tmp_path / "own" / "neighbour.py").write_text("FACTOR = 2.5\n")
    return tmp_path


def test_a_function_in_a_file(folder: Path) -> None:
    assert why_missing("./own/reward.py:score") is None
    score = import_callable("./own/reward.py:score")
    assert score(["p"], ["c"]) == [2.5]
    assert import_callable(f"{folder}/own/reward.py:score") is score  # one file is one module


def test_the_file_of_a_function(folder: Path) -> None:
    """Also in folders without `__init__.py`, which Python joins into packages."""
    (folder / "own" / "deep").mkdir()
    (folder / "own" / "deep" / "inner.py").write_text("def score(prompts, completions): ...\n")
    assert source_of("own.reward:score") == folder / "own" / "reward.py"
    assert source_of("own.deep.inner:score") == folder / "own" / "deep" / "inner.py"
    assert source_of("./own/reward.py:score") == Path("own/reward.py")
    assert source_of("sys:exit") is source_of("no_such_module:score") is source_of("own.missing:score") is None
    assert why_missing("own.deep.inner:scor") == "own.deep.inner has no 'scor'; did you mean 'own.deep.inner:score'?"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("./own/rewards.py:score", "no such file: ./own/rewards.py"),
        ("./own/reward.py:scor", "./own/reward.py has no 'scor'; did you mean './own/reward.py:score'?"),
        ("no_such_module:score", "no module named 'no_such_module'"),
    ],
)
def test_what_is_missing_is_named_with_and_without_an_import(folder: Path, spec: str, reason: str) -> None:
    assert reason in (why_missing(spec) or "")
    with pytest.raises(RecipeError, match="cannot import") as caught:
        import_callable(spec)
    assert reason.partition(";")[0].lower() in str(caught.value).lower()


def test_a_file_that_is_not_python_is_found_without_an_import(folder: Path) -> None:
    (folder / "broken.py").write_text("def score(prompts, completions): ...\n\nx = (\n")
    for spec in ("./broken.py:score", "broken:score"):
        assert "broken.py:3: not valid Python: '(' was never closed" in (why_missing(spec) or "")


@pytest.mark.parametrize("spec", ["./broken.py:score", "broken_module:score"])
def test_a_file_that_fails_is_named_with_its_line(folder: Path, spec: str) -> None:
    file = folder / (spec.partition(":")[0].removesuffix(".py").removeprefix("./") + ".py")
    file.write_text("import json\n\nTABLE = json.loads('{')\n\ndef score(prompts, completions): ...\n")
    with pytest.raises(RecipeError, match=rf"{file.name}:3: JSONDecodeError"):
        import_callable(spec)


def test_an_error_of_many_lines_or_of_none_is_one_line() -> None:
    assert describe(ValueError("\nfirst\nsecond")) == "ValueError: first"
    assert describe(ValueError()) == "ValueError"
