"""Overrides from the command line, `training.learning_rate=1e-5`, laid over a recipe's YAML before it is checked.

Under `loader`. Values are read by the same YAML rules and go through the same schema as the file, so an override can
say nothing that the file could not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf.errors import RecipeError
from rlhf.recipe.yaml_lines import Document, KeyPath, Place, dotted, parse

# Lists of sources, which the schema also takes as one path or one section (see sections._as_sources).
SOURCE_LISTS = {("data", "train"), ("data", "eval"), ("sources",), ("prompts",), ("preferences",)}


class _CannotSet(Exception):
    """Why an override has no place to go."""


def apply(document: Document, overrides: Iterable[str]) -> None:
    """Set every `key=value` in `document`, in order; what cannot be set is added to its problems."""
    for text in overrides:
        shown = text if len(text) <= 120 else text[:117] + "..."
        place = Place(f"override '{shown}'")
        key, equals, value = text.partition("=")
        path = tuple(_part(part) for part in key.strip().split("."))
        if not equals or "" in path:
            document.problems.append((place, "write it as key=value, for example training.learning_rate=1e-5"))
            continue
        try:
            parsed = parse(value, place.source, numbered=False)
            _set(document, path, parsed, place)
        except RecipeError as error:
            document.problems.append((place, _quoting_hint(error.problems[0].removeprefix(f"{place}: "))))
        except _CannotSet as error:
            document.problems.append((place, str(error)))


def _part(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text


def _quoting_hint(problem: str) -> str:
    return f"{problem}; put a text with special characters in quotes inside the value: key='\"...\"'"


def _set(document: Document, path: KeyPath, parsed: Document, place: Place) -> None:
    """Put the parsed value at `path`, making the sections on the way that are not there."""
    if not isinstance(document.data, dict):
        document.data = {}
    here: Any = document.data
    for depth, part in enumerate(path[:-1], start=1):
        child = _get(here, part, path[: depth - 1])
        if path[:depth] in SOURCE_LISTS and isinstance(path[depth], int) and isinstance(child, (str, dict)):
            child = [{"path": child} if isinstance(child, str) else child]
            _put(here, part, child)
        if child is None:
            child = [] if isinstance(path[depth], int) else {}
            _put(here, part, child)
            document.places[path[:depth]] = place
        here = child
    _get(here, path[-1], path[:-1])
    _put(here, path[-1], parsed.data)
    for old in [known for known in document.places if known[: len(path)] == path]:
        del document.places[old]
    document.places.update({(*path, *inner): place for inner in parsed.places})
    document.problems.extend(parsed.problems)


def _get(here: Any, part: str | int, parents: KeyPath) -> Any:
    """The child at `part`, None where there is none yet. Raises where there can be none."""
    name = dotted(parents) or "the recipe"
    if isinstance(here, dict):
        return here.get(str(part))
    if isinstance(here, list):
        if not isinstance(part, int):
            raise _CannotSet(f"{name} is a list: name an item by its number, for example {name}.0.{part}=...")
        if part > len(here):
            count = f"{len(here)} item" + "s" * (len(here) != 1)
            raise _CannotSet(f"{name} has {count}, so the next one is {name}.{len(here)}, not {name}.{part}")
        return here[part] if part < len(here) else None
    raise _CannotSet(f"{name} is neither a section nor a list, so it has no {part}")


def _put(here: Any, part: str | int, value: Any) -> None:
    if isinstance(here, dict):
        here[str(part)] = value
    elif part == len(here):
        here.append(value)
    else:
        here[part] = value
