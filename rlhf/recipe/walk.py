"""One walk over a recipe's sections, used by everything that looks at all of them: check, status, messages, the docs.

Two trees are walked: the recipe that was read (`sections`), and the schema that it must fit (`schema_sections`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from rlhf.recipe.yaml_lines import KeyPath


def sections(section: BaseModel, path: KeyPath = ()) -> Iterator[tuple[KeyPath, BaseModel]]:
    """The section and every section inside it, each with its keys."""
    yield path, section
    for name in type(section).model_fields:
        value = getattr(section, name)
        for at, item in _items(value, (*path, name)):
            if isinstance(item, BaseModel):
                yield from sections(item, at)


def texts(section: BaseModel) -> Iterator[str]:
    """Every text that a recipe holds, at any depth."""
    for _, inner in sections(section):
        for name in type(inner).model_fields:
            yield from (item for _, item in _leaves(getattr(inner, name), (name,)) if isinstance(item, str))


def sections_that_stand(schema: type[BaseModel], data: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, BaseModel]]:
    """The sections of a recipe with mistakes that are right by themselves, so that their files can still be looked up."""
    if not isinstance(data, dict):
        return
    for name, field in schema.model_fields.items():
        inner, listed = section_in(field.annotation)
        value = data.get(name)
        if inner is None or value is None:
            continue
        if listed and isinstance(value, str | dict):  # one source stands for a list of one
            value = [{"path": value}] if isinstance(value, str) else [value]
        for at, item in _items(value, (*path, name)):
            try:
                yield from sections(inner.model_validate(item), at)
            except ValidationError as error:
                yield from sections_that_stand(inner, item, at)
                if right := _without_mistakes(inner, item, error):
                    yield at, right


def _without_mistakes(schema: type[BaseModel], item: Any, error: ValidationError) -> BaseModel | None:
    """The section without the keys that are wrong, or None where they cannot be left out."""
    wrong = {detail["loc"][0] for detail in error.errors() if detail["loc"]}
    if not isinstance(item, dict) or not wrong:
        return None
    try:
        return schema.model_validate({key: value for key, value in item.items() if key not in wrong})
    except ValidationError:
        return None


def schema_sections(schema: type[BaseModel], at: KeyPath = ()) -> Iterator[tuple[KeyPath, type[BaseModel]]]:
    """Every section of a recipe's schema with where it stands; `*` marks the items of a list."""
    yield at, schema
    for name, field in schema.model_fields.items():
        section, listed = section_in(field.annotation)
        if section is not None:
            yield from schema_sections(section, (*at, name, "*") if listed else (*at, name))


def section_at(schema: type[BaseModel], path: KeyPath, data: Any = None) -> type[BaseModel] | None:
    """The section of the schema that `path` leads to; the number of a list's item is passed over.

    Where the schema has several for one place, the first; with the recipe's `data`, the one of the `engine` that it names.
    """
    section: type[BaseModel] | None = schema
    for part in path:
        data = data[part] if isinstance(data, dict) and part in data else None
        if isinstance(part, int):
            continue
        if section is None or part not in section.model_fields:
            return None
        annotation = section.model_fields[part].annotation
        engine = data.get("engine") if isinstance(data, dict) else None
        named = (s for s in sections_in(annotation) if engine in get_args(_annotation_of(s, "engine")))
        section = next(named, None) or section_in(annotation)[0]
    return section


def _annotation_of(section: type[BaseModel], name: str) -> Any:
    field = section.model_fields.get(name)
    return None if field is None else field.annotation


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every section that an annotation names: all branches of a union, the items of a list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)


def section_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The first section inside an annotation (`LoraSection | None`, `list[SourceSection]`), and whether it is listed."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for argument in get_args(annotation):
        section, listed = section_in(argument)
        if section is not None:
            return section, listed or getattr(annotation, "__origin__", None) is list
    return None, False


def _items(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """The items of a list or of a mapping, or the value itself, each with its keys."""
    if isinstance(value, list):
        yield from (((*path, number), item) for number, item in enumerate(value))
    elif isinstance(value, dict):
        yield path, value
        yield from (((*path, key), item) for key, item in value.items())
    else:
        yield path, value


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, list | dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*path, key))
    else:
        yield path, value
