"""What the documents say is so: keys, paths, functions, commands, verbs, figures, layers and examples."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

import rlhf.errors
from rlhf.cli import app
from rlhf.recipe import load
from rlhf.recipe.schema import METHODS
from rlhf.recipe.sections import Section

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "recipes/*/README.md", "accelerate_configs/*.md")
    for path in ROOT.glob(pattern)
)
PATH = re.compile(r"(?<![\w./-])(?:rlhf|tests|docs|recipes|benchmarks|accelerate_configs)/[\w./*-]*[\w/]")
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(?:#[^)]*)?\)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def sections_of(kind: Any, seen: set[type[Section]]) -> Iterator[type[Section]]:
    """A section and every section that its fields can hold."""
    if isinstance(kind, type) and issubclass(kind, Section):
        if kind in seen:
            return
        seen.add(kind)
        yield kind
        for field in kind.model_fields.values():
            yield from sections_of(field.annotation, seen)
    for argument in get_args(kind):
        yield from sections_of(argument, seen)


def test_every_key_and_default_is_documented() -> None:
    blocks = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", (ROOT / "docs/recipes.md").read_text(), re.M | re.S))
    seen: set[type[Section]] = set()
    sections = [section for method in METHODS.values() for section in sections_of(method, seen)]
    assert set(blocks) == {section.__name__ for section in sections}
    for section in sections:
        rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", blocks[section.__name__], re.M))
        assert list(rows) == list(section.model_fields), section.__name__
        for name, field in section.model_fields.items():
            default = field.default
            if field.is_required():
                assert rows[name] == "**required**", name
            elif isinstance(default, bool | int | float | str):
                shown = str(default).lower() if isinstance(default, bool) else str(default)
                assert rows[name] == f"`{shown}`", f"{section.__name__}.{name}"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_recipe_that_we_ship_is_valid(path: Path) -> None:
    assert load(str(path)).output_dir.startswith("outputs/")


def test_the_readmes_recipe_is_the_file_it_points_at() -> None:
    shown = (ROOT / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert shown in (ROOT / "recipes/quickstart/5_dpo.yaml").read_text()


@each_page
def test_every_path_and_link_exists(page: Path) -> None:
    text = page.read_text()
    paths = {path for path in PATH.findall(re.sub(r"https?://\S+", "", text)) if not list(ROOT.glob(path))}
    links = {
        link
        for _, link in LINK.findall(text)
        if not link.startswith(("http://", "https://")) and not (page.parent / link).exists()
    }
    assert (paths, links) == (set(), set())


@each_page
def test_every_function_that_is_linked_is_defined(page: Path) -> None:
    """A link whose text is one name in backticks names something that its Python file defines."""
    for name, link in re.findall(r"\[`([\w.]+)`\]\(([^)]+\.py)\)", page.read_text()):
        assert name.split(".")[-1] in defined((page.parent / link).resolve(), name), f"{link} has no {name}"


def defined(file: Path, name: str) -> set[str]:
    """The names at a module's top level and those it imports; for `rlhf.errors` the module; for `Class.method` the class's."""
    if name == ".".join(file.relative_to(ROOT).with_suffix("").parts):
        return {name.split(".")[-1]}
    body = ast.parse(file.read_text()).body
    if "." in name:
        body = next(n.body for n in body if isinstance(n, ast.ClassDef) and n.name == name.split(".")[0])
    return {n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)} | {
        alias.name for n in body if isinstance(n, ast.ImportFrom) for alias in n.names
    }


def commands_of(text: str) -> Iterator[list[str]]:
    """The words after `rlhf` of every command that a page shows, in a code span or an indented line."""
    text = text.replace("\\\n", " ")
    spans = re.findall(r"`((?:accelerate launch [^`]*-m )?rlhf [^`\n]+)`", text)
    lines = re.findall(r"^    ((?:\S*accelerate launch .*-m )?rlhf .*)$", text, re.M)
    for command in (part for found in spans + lines for part in found.split(" && ")):
        if "rlhf " in command:
            yield shlex.split(command[command.index("rlhf ") + 5 :], comments=True)


@each_page
def test_every_command_exists_and_its_recipe_takes_the_changes(page: Path) -> None:
    for words in commands_of(page.read_text()):
        command: Any = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        group = hasattr(command, "commands")
        assert not group or command.name == "data" or words[0].startswith("-"), words
        known = {option for parameter in command.params for option in parameter.opts} | {"-h", "--help", "--version"}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= known, words
        recipe = next((word for word in words if re.fullmatch(r"recipes/\S+\.yaml", word)), None)
        if recipe is not None:
            changes = [word for word in words if re.match(r"[\w.]+=", word)]
            load(str(ROOT / recipe), changes)


@each_page
def test_every_verb_of_make_exists(page: Path) -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    shown = re.findall(r"`(?:\w+=\S+ )?make ([a-z-]+)", page.read_text()) + re.findall(
        r"^    make ([a-z-]+)", page.read_text(), re.M
    )
    assert set(shown) <= verbs


def test_the_readmes_figures_are_those_of_the_benchmarks() -> None:
    """Every number of a line that links a result stands in that result."""
    checked = 0
    for item in re.split(r"\n(?=- |\n)", (ROOT / "README.md").read_text()):
        results = [link for _, link in LINK.findall(item) if link.startswith("benchmarks/results/")]
        if results:
            known = "\n".join((ROOT / link).read_text() for link in results)
            figures = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w])", LINK.sub("", item))
            assert [f for f in figures if not re.search(rf"(?<![\d,.]){re.escape(f)}(?![\d,])", known)] == []
            checked += len(figures)
    assert checked >= 8


def test_the_readmes_quickstart_is_the_run_it_names() -> None:
    table = (ROOT / "README.md").read_text().split("    model   evaluation judge")[1].split("This is run 2")[0]
    run = next(line for line in (ROOT / "docs/results.md").read_text().splitlines() if line.startswith("| 2 |"))
    for figure in ("68% [62, 74]", "75% [69, 80]", "78% [67, 86]", "0.13", "0.84", "1.29", "1.48", "5.36"):
        assert figure in table and figure in run, figure


def test_the_readme_shows_the_tree_that_is_there() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("## ")[0]
    packages = {f"rlhf/{path.parent.name}/" for path in (ROOT / "rlhf").glob("*/__init__.py")}
    assert set(re.findall(r"^    (rlhf/\w+/)", tree, re.M)) == packages
    rooms = (ROOT / "docs/design.md").read_text().split("## The rooms")[1].split("## ")[0]
    assert set(re.findall(r"^\| `(rlhf/\w+/)`", rooms, re.M)) == packages


def test_the_design_page_shows_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    shown = (ROOT / "docs/design.md").read_text().split("## The layers")[1].split("## ")[0]
    assert re.findall(r"^    (.+)$", shown, re.M) == contracts[0]["layers"]


def test_ppos_six_steps_stand_in_the_code_in_order() -> None:
    files = [(ROOT / "rlhf/train" / name).read_text() for name in ("online.py", "policy_gradient.py")]
    updates = "".join(text.split("def updates")[1].split("\n    def ")[0] for text in files)
    steps = re.findall(r"^### (\d \w+)$", (ROOT / "docs/ppo.md").read_text(), re.M)
    assert [step.lower() for step in steps] == re.findall(r"^ *# (\d \w+)$", updates, re.M)


def test_the_contract_names_every_metric_and_exit_code() -> None:
    page = (ROOT / "docs/agents.md").read_text()
    files = [*(ROOT / "rlhf/losses").rglob("*.py"), *(ROOT / "rlhf/train").glob("*.py")]
    written = {
        key.value
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and re.fullmatch(r"\w+/\w+", key.value)
    }
    assert len(written) >= 14
    assert {name for name in written if f"`{name}`" not in page} == set()
    codes = {error.exit_code for error in vars(rlhf.errors).values() if isinstance(error, type)}
    assert {code for code in codes if not re.search(rf"^\| {code} \|", page, re.M)} == set()


def test_the_examples_in_python_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.S)
    checked = [example for example in examples if "assert" in example]  # the others show what needs files or models
    assert len(checked) >= 4
    for example in checked:
        exec(example, {})


@pytest.mark.parametrize("page", ["docs/agents.md"])
def test_the_recipes_on_a_page_are_valid(page: str, tmp_path: Path) -> None:
    for i, text in enumerate(re.findall(r"```yaml\n(method:.*?)```", (ROOT / page).read_text(), re.S)):
        file = tmp_path / f"{i}.yaml"
        file.write_text(text)
        load(str(file))
