"""Writes docs/recipes.md from the schema: one table a section, with each key's meaning, range and default. `make docs`."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlhf.recipe.schema import METHODS
from rlhf.recipe.sections import Recipe, Section
from rlhf.recipe.walk import sections_in

HEAD = """# Every key of every recipe

`rlhf/recipe/` is the contract; this page is read off it (`make docs`), and a test holds it to it. Unknown
keys, duplicate keys, wrong types and values out of range are errors (exit code 2), all reported at once by `rlhf check`.
Relative paths are relative to where the command runs. `key=value` on the command line obeys the same schema:
`training.learning_rate=1e-5`, `data.train=rows.jsonl`, `lora.r=4`, `quantization=null`, `data.train.0.max_rows=100`.

"""
WORDS = {str: "text", int: "whole number", float: "number", bool: "true \\| false", Any: "anything"}
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "at least", "max_length": "at most"}


def kind(t: Any) -> str:
    """A type in a user's words."""
    if get_origin(t) is Annotated:
        t = get_args(t)[0]
    origin, parts = get_origin(t), get_args(t)
    if origin is typing.Literal:
        return " \\| ".join(str(part).lower() if isinstance(part, bool) else str(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        names = " or ".join(kind(part) for part in parts if part is not type(None))
        return names + (" or null" if type(None) in parts else "")
    if origin is list:
        return f"list of {kind(parts[0])}"
    if origin is dict:
        return f"mapping of {kind(parts[1])}"
    if isinstance(t, type) and issubclass(t, Section):
        return f"[{t.__name__}](#{t.__name__.lower()})"
    return WORDS.get(t, str(t))


def limits(field: FieldInfo) -> str:
    """The range of a number, the length of a list."""
    found = list(field.metadata)
    for option in get_args(field.annotation) or ():
        found += [m for extra in get_args(option)[1:] for m in getattr(extra, "metadata", [extra])]
    said = [
        f"{sign} {getattr(m, name)}"
        for m in found
        for name, sign in SIGNS.items()
        if getattr(m, name, None) is not None
    ]
    return ", ".join(dict.fromkeys(said))


def default(field: FieldInfo) -> str:
    """A key's default as it would be written in YAML."""
    if field.default is PydanticUndefined:
        return "**required**"
    if isinstance(field.default, Section):
        return "its defaults"
    if field.default is None:
        return "null"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def block(section: type[BaseModel]) -> str:
    """A section's heading, docstring and table."""
    about = (section.__doc__ or "").strip().replace("\n    ", " ")
    lines = [f"## {section.__name__}", "", about, "", "| key | what | range | default |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        lines.append(f"| `{name}` | {kind(field.annotation)} | {limits(field)} | {default(field)} |")
    return "\n".join(lines) + "\n"


def all_sections(section: type[BaseModel], seen: list[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """A section and all that its keys can hold, each once."""
    if section in seen:
        return
    seen.append(section)
    yield section
    for field in section.model_fields.values():
        for inner in sections_in(field.annotation):
            yield from all_sections(inner, seen)


if __name__ == "__main__":
    seen: list[type[BaseModel]] = []
    found = [section for method in METHODS.values() for section in all_sections(method, seen)]
    ordered = sorted(found, key=lambda section: not issubclass(section, Recipe))
    Path(__file__).with_name("recipes.md").write_text(HEAD + "\n".join(map(block, ordered)), encoding="utf-8")
