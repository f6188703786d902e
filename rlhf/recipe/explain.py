"""What is wrong with a recipe, in a user's words, from what the schema says about it.

Under `loader`. Pydantic's own messages ("Input should be a valid number") name neither the key a user wrote nor where
it belongs; here every complaint becomes `dotted.key: what is wrong; did you mean 'x'?`.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from rlhf.recipe.foreign_names import SAID, SAME
from rlhf.recipe.schema import METHODS
from rlhf.recipe.walk import schema_sections, section_at
from rlhf.recipe.yaml_lines import Document, KeyPath, Place, dotted

EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a section of keys with values",
    "model_type": "a section of keys with values",
    "model_attributes_type": "a section of keys with values",
}
RANGE = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def shown(value: Any) -> str:
    """A value as a user would name it: `the string 'abc'`, `the number 3`, `a list`."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"the number {_number(value)}"
    if isinstance(value, str):
        return f"the string {value if len(value) <= 60 else value[:57] + '...'!r}"
    return "a list" if isinstance(value, list) else "a section"


def explain(error: ValidationError, schema: type[BaseModel], document: Document) -> list[tuple[Place, str]]:
    """One (place, message) for each thing that is wrong."""
    wanted: dict[KeyPath, list[str]] = {}  # type errors by key: the branches of a union complain one by one
    found: list[tuple[Place, str]] = []
    paths = []
    for detail in error.errors(include_url=False):
        path = _written(detail["loc"], document.data, missing=detail["type"] == "missing")
        paths.append(path)
        if detail["type"] in EXPECTED:
            wanted.setdefault(path, []).append(EXPECTED[detail["type"]])
            continue
        message = _message(detail, path, schema, document.data)
        if detail["type"] == "value_error":
            path, message = _with_key(path, message, schema)
        found.append((document.place(path), f"{dotted(path)}: {message}" if path else message))
    for path, kinds in wanted.items():
        if any(len(other) > len(path) and other[: len(path)] == path for other in paths):
            continue  # another branch of the union got further and says it better
        value = _at(document.data, path)
        hint = _type_hint(kinds, value)
        found.append((document.place(path), f"{dotted(path)}: expected {' or '.join(kinds)}, got {shown(value)}{hint}"))
    return found


def _written(loc: tuple[str | int, ...], data: Any, *, missing: bool) -> KeyPath:
    """Pydantic's location as the keys that the user wrote: no union branches, no index in a list made of one source."""
    path: KeyPath = ()
    for depth, part in enumerate(loc, start=1):
        if missing and depth == len(loc):
            return (*path, part)
        keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
        if part in keys:
            path, data = (*path, part), data[part]
    return path


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def _with_key(path: KeyPath, message: str, schema: type[BaseModel]) -> tuple[KeyPath, str]:
    """A section's validator may name the key at fault, as in "prompt: must contain {prompt}"."""
    head, separator, rest = message.partition(": ")
    keys = tuple(head.split("."))
    section = section_at(schema, path)
    if separator and section is not None and keys[0] in section.model_fields:
        return (*path, *keys), rest
    return path, message


def _number(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    if isinstance(value, int) and abs(value) >= 10**24:
        return "more than 24 digits"
    return repr(value)


def _type_hint(kinds: list[str], value: Any) -> str:
    if isinstance(value, str) and ("a number" in kinds or "a whole number" in kinds):
        try:
            float(value)
        except ValueError:
            return ""
        return "; write it without quotes" if "_" not in value else "; write it without quotes and underscores"
    if isinstance(value, str) and kinds == ["true or false"] and value.lower() in ("yes", "no", "on", "off"):
        return f"; write {'true' if value.lower() in ('yes', 'on') else 'false'}"
    if kinds == ["a list"] and isinstance(value, str):
        return "; write []" if value in ("none", "None", "") else f"; write [{value}]"
    if "text" in kinds and value is not None and not isinstance(value, list):
        return "; put the text in quotes"
    return ""


def _message(detail: Any, path: KeyPath, schema: type[BaseModel], data: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return "required key is missing"
    if kind == "extra_forbidden":
        return _unknown(path, schema, data)
    if kind == "literal_error":
        return _not_a_choice(context["expected"], detail["input"])
    if kind in RANGE:
        bound, words = RANGE[kind]
        return f"must be {words} {_number(context[bound])}, got {_number(detail['input'])}"
    if kind == "finite_number":
        return f"must be a finite number, got {detail['input']}"
    if kind == "too_short":
        return "the list must have at least one item"
    if kind == "union_tag_invalid":  # the kind of an engine
        key = context["discriminator"].strip("'")
        return f"{key}: {_not_a_choice(context['expected_tags'], context['tag'])}"
    if kind == "union_tag_not_found":
        return f"{context['discriminator'].strip(chr(39))}: required key is missing"
    if kind == "value_error":
        return str(context["error"])
    return str(detail["msg"])


def _not_a_choice(expected: str, value: Any) -> str:
    choices = [word.lower() or text for text, word in re.findall(r"'([^']*)'|(True|False)", expected)]
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    hint = f"; did you mean '{near[0]}'?" if near else ""
    if "true" in choices and str(value).lower() in ("yes", "on", "no", "off"):
        hint = f"; write {'true' if str(value).lower() in ('yes', 'on') else 'false'}"
    wanted = f"one of {', '.join(choices)}" if len(choices) > 1 else f"'{choices[0]}', the only choice"
    return f"expected {wanted}; got {shown(value)}{hint}"


def _unknown(path: KeyPath, schema: type[BaseModel], data: Any) -> str:
    """Why a key is not known here: another program calls it so, it belongs elsewhere, it is misspelt, or there is none."""
    name = str(path[-1])
    section = section_at(schema, path[:-1], data) or schema
    keys = list(section.model_fields)
    if name in SAID:
        return f"unknown key; {SAID[name]}"
    if name in SAME:
        *home, leaf = SAME[name].split(".")
        here = [part for part in path[:-1] if isinstance(part, str)]
        return f"unknown key; {f'did you mean {leaf!r}?' if home == here else f'write {SAME[name]} instead'}"
    elsewhere = {dotted(at): at for at in _homes(schema, name) if at != path[:-1]}  # here, but with another engine
    plain = [home for home, at in elsewhere.items() if "*" not in at]
    if plain:
        return f"unknown key; {name} belongs {_under(plain[0])}"
    near = difflib.get_close_matches(name, keys, n=1) or [key for key in keys if name in key]
    if near:
        return f"unknown key; did you mean '{near[0]}'?"
    if elsewhere:
        return f"unknown key; {name} belongs {_under(next(iter(elsewhere)))}"
    methods = [method for method, other in METHODS.items() if other is not schema and name in other.model_fields]
    if methods and len(path) == 1:
        return f"unknown key; {name} is for recipes with method: {' or '.join(methods)}"
    others = [key for key in _all_keys(schema) if key != name]
    far = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
    if far:
        return f"unknown key; did you mean '{far[0]}' {_under(dotted(_homes(schema, far[0])[0]))}?"
    return f"unknown key; the keys here are {', '.join(keys)}"


def _under(home: str) -> str:
    return f"under {home.replace('.*', '')}:" if home else "at the left margin"


def _homes(schema: type[BaseModel], name: str) -> list[KeyPath]:
    return [at for at, section in schema_sections(schema) if name in section.model_fields]


def _all_keys(schema: type[BaseModel]) -> list[str]:
    return [name for _, section in schema_sections(schema) for name in section.model_fields]
