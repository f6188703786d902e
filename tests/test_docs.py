"""What the documents say of the recipes is what the schema says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from rlhf.recipe import load
from rlhf.recipe.schema import METHODS
from rlhf.recipe.sections import Section

ROOT = Path(__file__).parents[1]


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
