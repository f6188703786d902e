"""The pages, the recipes and the schema that come with the program, from a checkout and from a wheel."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from rlhf.cli import app
from rlhf.cli.common import complete_recipe
from rlhf.recipe import load
from rlhf.recipe.schema import METHODS

ROOT = Path(__file__).resolve().parents[2]


def rlhf(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="rlhf")


def test_docs_lists_and_prints_pages() -> None:
    listed = rlhf("docs")
    assert (listed.exit_code, listed.stderr) == (0, "")
    assert "recipes        Every key of every recipe\n" in listed.stdout
    assert rlhf("docs", "recipes").stdout == (ROOT / "docs/recipes.md").read_text()


def test_an_unknown_page_is_answered_with_the_nearest() -> None:
    result = rlhf("docs", "recipe")
    assert (result.exit_code, result.stderr) == (2, "no page 'recipe'; did you mean 'recipes'?\n")


def test_recipes_are_listed_and_copied(tmp_path: Path) -> None:
    assert "quickstart " in rlhf("recipes").stdout
    assert "5_dpo.yaml" in rlhf("recipes", "quickstart").stdout
    assert rlhf("recipes", "quickstart", "--to", str(tmp_path / "mine")).exit_code == 0
    assert (tmp_path / "mine/5_dpo.yaml").read_text() == (ROOT / "recipes/quickstart/5_dpo.yaml").read_text()
    assert rlhf("recipes", "quickstart", "--to", str(tmp_path / "mine")).exit_code == 2


def test_the_schema_knows_every_method() -> None:
    schema = json.loads(rlhf("schema").stdout)
    assert {"sft", "reward", "ppo", "dpo", "data", "generate", "eval"} <= set(schema["discriminator"]["mapping"])


@pytest.mark.parametrize("method", METHODS)
def test_a_starter_lacks_nothing_but_the_users_own_files(method: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = rlhf("init", method).stdout
    Path("r.yaml").write_text(text)
    assert load("r.yaml").method == method
    assert f"rlhf {' '.join(METHODS[method].command)} FILE" in text
    checked = rlhf("check", "r.yaml")
    wrong = [line for line in checked.stderr.splitlines() if "no such file: " not in line]
    assert wrong == [] and (checked.exit_code == 0) == (checked.stderr == "")


def test_a_starter_of_no_method_names_the_nearest() -> None:
    assert rlhf("init", "dpoo").stderr == "no method 'dpoo'; did you mean 'dpo'?\n"


def test_the_shell_completes_recipe_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("more").mkdir()
    for name in ("1_sft.yaml", "notes.txt", "more/2.yml"):
        Path(name).touch()
    assert complete_recipe("") == ["1_sft.yaml", "more/"]
    assert complete_recipe("more/") == ["more/2.yml"]


def test_every_command_shows_an_example() -> None:
    def commands(command, words=()):
        for name, inner in getattr(command, "commands", {}).items():
            yield from commands(inner, (*words, name))
        if not hasattr(command, "commands"):
            yield words

    for words in commands(get_command(app)):
        shown = rlhf(*words, "--help").stdout
        assert f"\n    rlhf {' '.join(words)}" in shown.partition("Example")[2], words


def test_a_wheel_holds_the_pages_and_the_recipes(tmp_path: Path) -> None:
    skipped = shutil.ignore_patterns(
        ".git", ".venv", "outputs", "__pycache__", ".*_cache", "build", "*.egg-info", "tests"
    )
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=skipped)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"rlhf/docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= names
    shipped = {f"rlhf/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").glob("*/*") if path.is_file()}
    assert shipped | {"rlhf/synthesis/prompts/score.en.txt"} <= names
    assert "rlhf/recipes/quickstart/5_dpo.yaml" in shipped
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    program = "import sys, rlhf; print(rlhf.__file__); from rlhf.cli import app; app(sys.argv[1:])"

    def installed(*arguments: str) -> str:
        command = [sys.executable, "-c", program, *arguments]
        there = {"PYTHONPATH": str(tmp_path / "installed")}
        said = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True, check=True).stdout
        assert str(tmp_path / "installed") in said
        return said

    assert "# Every key of every recipe" in installed("docs", "recipes")
    assert "5_dpo.yaml" in installed("recipes", "quickstart")
    installed("recipes", "quickstart", "--to", "mine")
    assert (tmp_path / "mine/1_sft.yaml").read_text() == (ROOT / "recipes/quickstart/1_sft.yaml").read_text()
