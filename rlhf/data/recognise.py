"""Which format a file has, from its columns; and, where none fits, a `columns:` line to paste.

Between `sources` and `formats`. A guess is made only where the columns leave one reading; where they could mean two
things (Alpaca's columns beside chosen and rejected) the recipe must say which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.data.formats import ASSISTANT, RANKS, Fields
from rlhf.data.rows import Located
from rlhf.errors import DataError
from rlhf.recipe.sections import Format, SourceSection

SAMPLE = 100  # rows looked at: the first of a file may lack a column

# Alternatives are tried in order; each is the set of columns that must be there.
_NEEDS: dict[Format, tuple[tuple[str, ...], ...]] = {
    "kochatgpt_rm": (("prompt", "completion_0", "completion_1", "ranking"),),
    "stack_exchange_paired": (("question", "response_j", "response_k"),),
    "hh": (("chosen", "rejected"),),
    "preference": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "ranking": (("prompt", "completions", "scores"), ("prompt", "completions", "ranking")),
    "demonstration": (("prompt", "completion"), ("messages",)),
    "alpaca": (("instruction", "output"),),
    "prompt": (("prompt",),),
}
_OPTIONAL: dict[Format, tuple[str, ...]] = {
    "preference": ("margin",),
    "alpaca": ("input",),
    "ranking": ("scores", "ranking"),
}
_SYNONYMS = {
    "prompt": ("prompt", "question", "instruction", "query", "q", "input", "conversations", "text"),
    "completion": ("completion", "answer", "output", "response", "a", "target"),
    "chosen": ("chosen", "response_j", "better", "preferred", "accepted"),
    "rejected": ("rejected", "response_k", "worse", "dispreferred"),
    "completions": ("completions", "answers", "responses", "candidates"),
    "scores": ("scores", "ratings", "rewards"),
    "messages": ("messages",),
}


def choose(rows: Sequence[Located], source: SourceSection) -> Format:
    """The source's format: the one it names, checked against its columns, or the one that they show.

    Raises DataError listing the columns found, the columns needed, and a `columns:` line to go on from.
    """
    _check_mapping(rows, source)
    fields = [Fields(r, source.columns) for r in rows]
    for f in fields:
        found = source.format if source.format and _has_columns(f, source.format) else None
        found = found or (None if source.format else _looks_like(f))
        if found:
            return found
    raise _refusal(fields[0], source)


def _has_columns(f: Fields, format: Format) -> bool:
    if format == "ranking" and "ranks" in f.data:  # refused row by row, with the reason
        return True
    return any(all(f.has(name) for name in names) for names in _NEEDS[format])


def _looks_like(f: Fields) -> Format | None:
    for format in _NEEDS:
        if _has_columns(f, format) and _is_plain(f, format):
            return format
    return None


def _is_plain(f: Fields, format: Format) -> bool:
    """Whether nothing beside the needed columns speaks for another reading."""
    match format:
        case "hh":
            return not f.has("prompt") and isinstance(f.data["chosen"], str) and ASSISTANT in f.data["chosen"]
        case "preference":
            return f.has("prompt") or isinstance(f.data["chosen"], list)
        case "ranking":
            return "ranks" not in f.data or f.has("ranking") or f.has("scores")
        case "alpaca":
            return not f.has("chosen") and not f.has("rejected")
        case "prompt":
            answers = [n for key, names in _SYNONYMS.items() if key not in ("prompt", "messages") for n in names]
            return not {c.lower() for c in f.data}.intersection([*answers, "completion_0", "ranks"])
        case _:
            return True


def _check_mapping(rows: Sequence[Located], source: SourceSection) -> None:
    if not source.columns:
        return
    formats: list[Format] = [source.format] if source.format else list(_NEEDS)
    known = {n for format in formats for names in (*_NEEDS[format], _OPTIONAL.get(format, ())) for n in names}
    there = {name for r in rows for name in r.data}
    for name, column in source.columns.items():
        if name not in known and not name.startswith("completion_"):
            what = f"format {source.format}" if source.format else "any format"
            raise DataError(source.path, f"columns: {name} is no field of {what}; it has {', '.join(sorted(known))}")
        if column not in there:
            raise DataError(source.path, f"columns: {name}: {column}: no such column; found {', '.join(sorted(there))}")


def _refusal(f: Fields, source: SourceSection) -> DataError:
    columns = ", ".join(f.located.data) or "none"
    if "ranks" in f.data and not f.has("ranking"):
        return DataError(source.path, f"{RANKS} (columns found: {columns})", field="ranks")
    if source.format:
        needed = " or ".join(", ".join(names) for names in _NEEDS[source.format])
        said = f"format {source.format} needs the columns {needed}; found {columns}"
        candidates: list[Format] = [source.format]
    else:
        said = f"no format fits the columns found: {columns}; needed are " + "; ".join(
            f"{format}: {' or '.join(', '.join(n) for n in names)}" for format, names in _NEEDS.items()
        )
        candidates = ["preference", "ranking", "demonstration", "prompt"]
    return DataError(
        source.path, f"{said}. Say which column is which, for example\n  {_suggestion(candidates, f.data)}"
    )


def _suggestion(candidates: Sequence[Format], data: Mapping[str, Any]) -> str:
    """A `columns:` line: the first candidate whose every column can be guessed, else one with gaps to fill."""
    lower = {c.lower(): c for c in data}
    for format in candidates:
        for names in _NEEDS[format]:
            guess = {n: next((lower[s] for s in _SYNONYMS.get(n, (n,)) if s in lower), None) for n in names}
            if all(guess.values()):
                return _line(format, guess)
    format = candidates[0] if len(candidates) == 1 else "demonstration"
    names = _NEEDS[format][0]
    return _line(format, {n: n if n in data else f"<the column that holds it: {n}>" for n in names})


def _line(format: Format, mapping: Mapping[str, str | None]) -> str:
    return f"format: {format}, columns: {{{', '.join(f'{n}: {c}' for n, c in mapping.items())}}}"
