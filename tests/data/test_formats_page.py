"""docs/formats.md: every format is there, and every example becomes the rows that the page shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from rlhf.data.formats import SPECS
from rlhf.recipe.sections import Format
from tests.data.support import load_one

PAGE = Path(__file__).parents[2] / "docs/formats.md"
EXAMPLE = re.compile(
    r"^`(?P<file>example\.\w+)`(?:, with (?P<options>`.*`))?(?P<named> \(`format:` has to be said\))?:\n\n"
    r"```\w+\n(?P<text>.*?)```\n\n"
    r"becomes .* of kind \*\*(?P<kind>\w+)\*\*:\n\n"
    r"```json\n(?P<rows>.*?)```",
    re.M | re.S,
)
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S))


def test_every_format_has_its_place() -> None:
    assert sorted(SECTIONS) == sorted(get_args(Format)) == sorted(SPECS)


@pytest.mark.parametrize("format", SECTIONS)
def test_the_example(tmp_path: Path, format: str) -> None:
    about, example = SECTIONS[format], EXAMPLE.search(SECTIONS[format])
    assert example, about
    path = tmp_path / example["file"]
    path.write_text(example["text"], encoding="utf-8")
    options = yaml.safe_load(example["options"].strip("`")) if example["options"] else {}
    loaded = load_one(path, format=format, **options)
    assert [{k: v for k, v in r.data.items() if k != "group"} for r in loaded.rows] == [
        json.loads(line) for line in example["rows"].splitlines()
    ]
    assert loaded.dropped == {} and loaded.sources[0]["kind"] == example["kind"]
    recognised = load_one(path, **options).sources[0]["format"]
    assert (recognised == format) == (example["named"] is None)


@pytest.mark.parametrize("format", SECTIONS)
def test_the_columns_it_needs_are_named(format: str) -> None:
    """What a reader has to have in a file; columns that a reader of whole files makes up are not the user's."""
    made_up = {"kochatgpt_chat": {"conversation"}, "stack_exchange_dump": {"qid", "answers"}}.get(format, set())
    for names in SPECS[format].needs:  # type: ignore[index]
        for name in set(names) - made_up:
            assert re.search(rf"\b{name}\b", SECTIONS[format]), name
