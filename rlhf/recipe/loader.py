"""Read a recipe: YAML and overrides in, a typed recipe out, or every problem at once with its file and line.

The front door of everything: the commands, `rlhf.run` and `rlhf check` all come through `load`. Unlike loaders that
stop at the first error, one run of it tells everything that is wrong, in the user's words.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rlhf.errors import RecipeError
from rlhf.recipe import explain, yaml_lines
from rlhf.recipe.overrides import apply
from rlhf.recipe.schema import METHODS, AnyRecipe
from rlhf.recipe.yaml_lines import Document, KeyPath, Place


@dataclass(frozen=True)
class Loaded:
    """A recipe together with where each of its keys was written."""

    recipe: AnyRecipe
    document: Document

    def place(self, path: KeyPath) -> Place:
        """Where `path` (or what stands around it) was written."""
        return self.document.place(path)


def load(path: str | Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """The typed recipe in the YAML file at `path`, with `key=value` overrides laid over it.

    Raises RecipeError with all problems found, one line each.
    """
    return read(path, overrides).recipe


def read(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """As `load`, and keeps the places of the keys, for checks that come after the schema's."""
    document = yaml_lines.parse(_text(Path(path)), str(path))
    if document.data is None:
        document.data = {}
    if not isinstance(document.data, dict):
        got = explain.shown(document.data)
        raise RecipeError(f"{document.place(())}: a recipe is a section of keys with values, not {got}")
    apply(document, overrides)
    recipe = _validate(document)
    if document.problems or recipe is None:
        ordered = sorted(document.problems, key=lambda problem: (problem[0].line == 0, problem[0].line))
        raise RecipeError(list(dict.fromkeys(f"{place}: {message}" for place, message in ordered)))
    return Loaded(recipe, document)


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


def _validate(document: Document) -> AnyRecipe | None:
    """The typed recipe, or None with the reasons added to the document's problems."""
    method = document.data.get("method")
    data = dict(document.data)
    if method not in list(METHODS):  # a list: the value may be unhashable
        choices = ", ".join(METHODS)
        near = difflib.get_close_matches(method, METHODS, n=2) if isinstance(method, str) else []
        if "method" not in document.data:
            document.problems.append((document.place(()), f"method: required key is missing; one of {choices}"))
        else:
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            message = f"method: expected one of {choices}; got {explain.shown(method)}{hint}"
            document.problems.append((document.place(("method",)), message))
        if len(near) != 1:
            return None
        data["method"] = near[0]  # the rest is checked as what was meant
    schema = METHODS[data["method"]]
    try:
        return schema.model_validate(data)  # type: ignore[return-value]
    except ValidationError as error:
        document.problems.extend(explain.problems(error, schema, document))
        return None


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
