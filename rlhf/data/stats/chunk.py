"""Rows as texts and lengths, a few hundred at a time: what every measure of `stats` takes.

Stands between the stream of canonical rows and the measures. With a tokenizer, lengths are in tokens as training counts them, else
in characters. The report's `unit` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from rlhf.data.rows import Located, Row, Text, completions_of, kind_of

SIZE = 512  # rows in a chunk: enough for a tokenizer's batch, and little memory

SIDES = {"preference": ("chosen", "rejected"), "ranking": ("completions",)}

# (length of the prompt, lengths of the completions), None where the template refuses the row
Lengths = tuple[int, list[int]] | None
LengthsOf = Callable[[Sequence[Row]], list[Lengths]]


@dataclass
class Tally:
    """How many rows have some property, and where the first of them is."""

    rows: int = 0
    example: str | None = None

    def add(self, row: Located) -> None:
        self.rows += 1
        self.example = self.example or str(row)

    def report(self) -> dict[str, Any]:
        return {"rows": self.rows, "example": self.example}


def words_of(value: Text) -> str:
    """The words alone: a text, or the contents of messages without their roles."""
    return value if isinstance(value, str) else "\n".join(m["content"] for m in value)


@dataclass(frozen=True)
class Chunk:
    """Some rows in order. `start` is the index of the first one among the split's rows."""

    start: int
    rows: list[Located]
    lengths: list[Lengths]

    @cached_property
    def kinds(self) -> list[str]:
        return [kind_of(row.data) for row in self.rows]

    @cached_property
    def prompts(self) -> list[str]:
        return [words_of(row.data["prompt"]) for row in self.rows]

    @cached_property
    def completions(self) -> list[list[str]]:
        return [[words_of(c) for c in completions_of(row.data)] for row in self.rows]


def side(kind: str, index: int) -> str:
    """The name of a row's completion `index`: chosen, rejected or completion; `completions` for every one of a ranking."""
    names = SIDES.get(kind, ("completion",))
    return names[index] if len(names) > 1 else names[0]


def chunks(rows: Iterable[Located], lengths_of: LengthsOf, size: int = SIZE) -> Iterator[Chunk]:
    """The rows in chunks, measured."""
    stream, start = iter(rows), 0
    while part := list(islice(stream, size)):
        yield Chunk(start, part, lengths_of([row.data for row in part]))
        start += len(part)


def characters(rows: Sequence[Row]) -> list[Lengths]:
    """Lengths in Unicode characters."""
    return [(len(words_of(row["prompt"])), [len(words_of(c)) for c in completions_of(row)]) for row in rows]
