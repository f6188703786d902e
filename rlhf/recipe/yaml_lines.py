"""YAML 1.2 text to plain data that remembers where every key and list item was written.

Under `loader`. PyYAML reads YAML 1.1, where `no` is false, `1e-5` is a string and `1:30` is ninety; a recipe with
`report_to: no` or `learning_rate: 1e-5` would silently mean something else. So only PyYAML's parser is used, with the
core scalars of YAML 1.2, and the nodes are turned into data here, where their lines are still known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from rlhf.errors import RecipeError

KeyPath = tuple[str | int, ...]

MAX_NODES = 100_000  # aliases of aliases ("a billion laughs") stop here
TAG = "tag:yaml.org,2002:"
CORE_SCALARS = {
    "null": (r"null|Null|NULL|~|", "nN~\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
HINTS = {
    "mapping values are not allowed here": "check the indentation, and quote a text that contains ': '",
    "found character '\\t' that cannot start any token": "indent with spaces, not tabs",
}


class Place(NamedTuple):
    """Where a value was written: a line of a file, or (line 0) an override."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass
class Document:
    """Plain data, the place of every key and item in it, and what was wrong while reading."""

    data: Any
    places: dict[KeyPath, Place]
    problems: list[tuple[Place, str]] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """The place of `path`, or of the nearest thing around it that was written."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]


class CoreLoader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2 instead of 1.1."""


CoreLoader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in CORE_SCALARS.items():
    _starts = ["" if character == "\0" else character for character in _first]  # "\0" stands for the empty scalar
    CoreLoader.add_implicit_resolver(TAG + _name, re.compile(rf"^(?:{_pattern})$"), _starts)


def parse(text: str, source: str, *, numbered: bool = True) -> Document:
    """Read one YAML document. `numbered=False` leaves the lines out of the places (for an override's value).

    Raises RecipeError where the text is not YAML; duplicate keys and the like are collected in `problems`.
    """
    reader = _Reader(source, numbered)
    try:
        loader = CoreLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        return reader.read(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        reason = error.problem or str(error)
        if "expected a single document" in str(error.context):
            reason = "a recipe is one YAML document, and a second one starts here"
        hint = HINTS.get(reason)
        message = f"not valid YAML: {reason}" + (f" ({hint})" if hint else "")
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        message = f"not valid YAML: the character U+{error.character:04X} is not allowed"
    except RecursionError:
        line, message = 1, "nested too deeply to be a recipe"
    raise RecipeError(f"{Place(source, line if numbered else 0)}: {message}")


class _Reader:
    """Turns YAML nodes into data, one pass, keeping places and problems."""

    def __init__(self, source: str, numbered: bool) -> None:
        self.source, self.numbered = source, numbered
        self.document = Document(None, {(): Place(source, 1 if numbered else 0)})
        self.open: set[int] = set()
        self.nodes = 0

    def read(self, node: yaml.Node | None) -> Document:
        if node is not None:
            self.document.places[()] = self._place(node)
            self.document.data = self._value(node, ())
        return self.document

    def _place(self, node: yaml.Node) -> Place:
        return Place(self.source, node.start_mark.line + 1 if self.numbered else 0)

    def _problem(self, node: yaml.Node, message: str) -> None:
        self.document.problems.append((self._place(node), message))

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise RecipeError(f"{self._place(node)}: too large to be a recipe (more than {MAX_NODES} values)")
        if id(node) in self.open:
            self._problem(node, "an alias inside the thing it stands for")
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
                return self._sequence(node, path)
            if isinstance(node, yaml.ScalarNode) and node.tag.startswith(TAG):
                return self._scalar(node)
        finally:
            self.open.discard(id(node))
        self._problem(node, f"the YAML tag {node.tag.replace(TAG, '!!')} has no meaning in a recipe")
        return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, "a key must be plain text")
                continue
            here = (*path, key_node.value)
            if key_node.value in data:
                first = self.document.places[here]
                where = f" on line {first.line}" if self.numbered else ""
                self._problem(key_node, f"{dotted(here)}: this key was already given{where}")
                continue
            self.document.places[here] = self._place(key_node)
            data[key_node.value] = self._value(value_node, here)
        return data

    def _sequence(self, node: yaml.SequenceNode, path: KeyPath) -> list[Any]:
        items = []
        for index, item in enumerate(node.value):
            self.document.places[(*path, index)] = self._place(item)
            items.append(self._value(item, (*path, index)))
        return items

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind, text = node.tag.removeprefix(TAG), node.value
        try:
            if kind == "str":
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if kind == "float":
                return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower()))
        except (ValueError, KeyError):
            self._problem(node, f"{text[:40]!r} cannot be read as {kind}")
            return None
        self._problem(node, f"the YAML tag !!{kind} has no meaning in a recipe")
        return None


def dotted(path: KeyPath) -> str:
    """`("data", "train", 0, "path")` as a user writes it in an override: `data.train.0.path`."""
    return ".".join(str(part) for part in path)
