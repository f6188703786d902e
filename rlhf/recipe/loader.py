"""Read a recipe: YAML and overrides in, a typed recipe out, or every problem at once with its file and line.

The front door of everything: the commands, `rlhf.run` and `rlhf check` all come through `load`. Unlike loaders that
stop at the first error, one run of it tells everything that is wrong, in the user's words.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rlhf.errors import RecipeError
from rlhf.recipe import explain, yaml_lines
from rlhf.recipe.overrides import apply
from rlhf.recipe.schema import METHODS, AnyRecipe
from rlhf.recipe.sections import Recipe
from rlhf.recipe.yaml_lines import Document, KeyPath, Place


@dataclass(frozen=True)
class Loaded:
    """A recipe together with where each of its keys was written."""

    recipe: AnyRecipe
    document: Document

    def place(self, path: KeyPath) -> Place:
        """Where `path` (or what stands around it) was written."""
        return self.document.place(path)

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Put `file:line: ` before what a RecipeError says of a key of this recipe, as `model.name_or_path: ...`."""
        try:
            yield
        except RecipeError as error:
            raise RecipeError([self._placed(problem) for problem in error.problems]) from error

    def _placed(self, problem: str) -> str:
        key, separator, _ = problem.partition(": ")
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        if not separator or path[0] not in type(self.recipe).model_fields:
            return problem
        return f"{self.place(path)}: {problem}"


@dataclass(frozen=True)
class Examined:
    """What became of a recipe's text: the document with all that is wrong with it, and the recipe where nothing is."""

    document: Document
    schema: type[Recipe] | None
    recipe: AnyRecipe | None

    def errors(self) -> list[tuple[Place, str]]:
        """What is wrong, in the order of the file; overrides last."""
        return sorted(self.document.problems, key=lambda problem: (problem[0].line == 0, problem[0].line))


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> AnyRecipe:
    """The typed recipe in a YAML file, or in a dict of the same keys, with `key=value` overrides laid over it.

    Raises RecipeError with all problems found, one line each.
    """
    return read(source, overrides).recipe


def read(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Loaded:
    """As `load`, and keeps the places of the keys, for checks that come after the schema's."""
    examined = examine(source, overrides)
    if examined.document.problems or examined.recipe is None:
        raise RecipeError(lines(examined.errors()))
    return Loaded(examined.recipe, examined.document)


def examine(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Examined:
    """As `read`, without raising for mistakes that the schema finds. Raises RecipeError for text that is not YAML."""
    if isinstance(source, Mapping):
        document = Document(copy.deepcopy(dict(source)), {(): Place("recipe")})
    else:
        document = yaml_lines.parse(_text(Path(source)), str(source))
    if document.data is None:
        document.data = {}
    if not isinstance(document.data, dict):
        got = explain.shown(document.data)
        raise RecipeError(f"{document.place(())}: a recipe is a section of keys with values, not {got}")
    apply(document, overrides)
    schema, recipe = _validate(document)
    return Examined(document, schema, recipe)


def lines(found: Sequence[tuple[Place, str]]) -> list[str]:
    """One line for each mistake, and each line once."""
    return list(dict.fromkeys(f"{place}: {message}" for place, message in found))


def dump(recipe: AnyRecipe) -> str:
    """The resolved recipe as YAML, every default written out; loads back to an equal recipe."""
    data = {"method": recipe.method, **_plain(recipe)}
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)


def digest(recipe: AnyRecipe) -> str:
    """The SHA-256 of the resolved recipe: equal where, and only where, two recipes ask for the same."""
    return hashlib.sha256(dump(recipe).encode()).hexdigest()


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except IsADirectoryError:
        raise RecipeError(f"{path}: this is a folder; to run its recipes in order: rlhf run {path}") from None
    except (FileNotFoundError, NotADirectoryError):
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"; did you mean '{path.parent / near[0]}'?" if near else ""
        raise RecipeError(f"{path}: no such recipe file{hint}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}:{line}: not UTF-8 text") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecipeError(f"{path}: the recipe cannot be read: {reason}") from None


def _validate(document: Document) -> tuple[type[Recipe] | None, AnyRecipe | None]:
    """The schema and the typed recipe, or None with the reasons added to the document's problems."""
    method = document.data.get("method")
    if isinstance(method, str) and method in METHODS:
        schema = METHODS[method]
        try:
            return schema, schema.model_validate(document.data)  # type: ignore[return-value]
        except ValidationError as error:
            document.problems.extend(explain.explain(error, schema, document))
            return schema, None
    near = _nearest_methods(method, document.data)
    choices = ", ".join(METHODS)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    if "method" not in document.data:
        document.problems.append((document.place(()), f"method: required key is missing; one of {choices}{hint}"))
    else:
        message = f"method: expected one of {choices}; got {explain.shown(method)}{hint}"
        document.problems.append((document.place(("method",)), message))
    meant = near if len(near) == 1 else list(METHODS)
    document.problems.extend(_wrong_in_all(meant, document))
    return (METHODS[near[0]] if len(near) == 1 else None), None


def _nearest_methods(method: object, data: dict[str, Any]) -> list[str]:
    """The methods that may be meant: by the misspelt name, else by a key that only one method's recipes have."""
    if isinstance(method, str):
        return difflib.get_close_matches(method, METHODS, n=2)
    owners = [[name for name, schema in METHODS.items() if key in schema.model_fields] for key in data]
    return sorted({names[0] for names in owners if len(names) == 1})


def _wrong_in_all(methods: list[str], document: Document) -> list[tuple[Place, str]]:
    """What is wrong with the recipe whichever of the methods it is for."""
    found: list[dict[str, tuple[Place, str]]] = []
    for name in methods:
        try:
            METHODS[name].model_validate(document.data | {"method": name})
            return []
        except ValidationError as error:
            problems = explain.explain(error, METHODS[name], document)
            found.append({message.split(": ")[0]: (place, message) for place, message in problems})
    return [problem for key, problem in found[0].items() if all(key in other for other in found)]


def _plain(section: BaseModel) -> dict[str, Any]:
    """A section as plain data, without the nulls that are the default anyway."""
    data = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if value is None and field.default is None:
            continue
        if isinstance(value, list):
            value = [_plain(item) if isinstance(item, BaseModel) else item for item in value]
        if isinstance(value, dict):
            value = {key: _plain(item) if isinstance(item, BaseModel) else item for key, item in value.items()}
        data[name] = _plain(value) if isinstance(value, BaseModel) else value
    return data


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would take for something other than text, so that every reader agrees."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> yaml.ScalarNode:
        """Line breaks as escapes: folded over lines they are hard to read, and U+0085 does not come back."""
        style = '"' if len(data.splitlines()) > 1 or data.strip() != data else None
        return self.represent_scalar(yaml_lines.TAG + "str", data, style=style)


_Dumper.add_representer(str, _Dumper.text)
_Dumper.yaml_implicit_resolvers = {
    first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
for _first, _known in yaml_lines.CoreLoader.yaml_implicit_resolvers.items():
    _Dumper.yaml_implicit_resolvers.setdefault(_first, []).extend(_known)
