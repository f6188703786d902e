"""Which format a file has, from its columns; and, where none fits, a `columns:` line to paste.

Between `sources` and `formats`. A guess is made only where the columns leave one reading; where they could mean two
things (a prompt, a completion and a label of 0 or 1: a KTO row, or a class that means something else) the recipe must say which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.data.formats import SPECS, Fields
from rlhf.data.formats.fields import as_boolean, is_judgement
from rlhf.data.formats.orders import RANKS
from rlhf.data.formats.templates import check
from rlhf.data.rows import Located
from rlhf.errors import DataError
from rlhf.recipe.sections import Format, SourceSection

SAMPLE = 100  # rows looked at: the first of a file may lack a column

_SYNONYMS = {
    "prompt": ("prompt", "question", "instruction", "query", "q", "input", "conversations", "text"),
    "completion": ("completion", "answer", "output", "response", "a", "target"),
    "label": ("label", "kto_tag", "thumbs_up", "desirable"),
    "chosen": ("chosen", "response_j", "better", "preferred", "accepted"),
    "rejected": ("rejected", "response_k", "worse", "dispreferred"),
    "completions": ("completions", "answers", "responses", "candidates"),
    "scores": ("scores", "ratings", "rewards"),
    "question": ("question", "prompt", "query", "q"),
    "instruction": ("instruction", "prompt", "question"),
    "output": ("output", "completion", "answer", "response"),
    "conversations": ("conversations", "messages", "conversation"),
    "messages": ("messages", "conversations", "conversation"),
    "response1": ("response1", "response_1", "answer1", "response_a"),
    "response2": ("response2", "response_2", "answer2", "response_b"),
}
# Said in this order where nothing fits and nothing can be guessed.
_GENERAL: tuple[Format, ...] = ("preference", "scored", "unpaired", "demonstration", "prompt")


def choose(rows: Sequence[Located], source: SourceSection) -> Format:
    """The source's format: the one it names, checked against its columns, or the one that they show.

    The columns are those that any of the rows (the source's first `SAMPLE`) has. Raises DataError listing the columns found, the columns
    needed and a `columns:` line to go on from, or the formats between which to choose; RecipeError for a template that does not fit.
    """
    _check_mapping(rows, source)
    f = _merged(rows, source)
    if "ranks" in f.data and "ranks" not in f.columns and not any(map(f.has, ("ranking", "scores", "comparisons"))):
        raise DataError(source.path, f"{RANKS} (columns found: {_found(rows)})", field="ranks")
    if source.format:
        fitting = [source.format] if _has_columns(f, source.format) else []
    else:
        fitting = [format for format, spec in SPECS.items() if spec.fits and _has_columns(f, format) and spec.fits(f)]
    if not fitting:
        raise _refusal(f, rows, source)
    if len(fitting) > 1:
        readings = " or ".join(f"format: {format}" for format in fitting)
        raise DataError(source.path, f"the columns {_found(rows)} can be read in {len(fitting)} ways; say {readings}")
    if source.template is not None:
        spec = SPECS[fitting[0]]
        check(source.template, spec.template, spec.presets, f"{source.path} (format {fitting[0]})")
    return fitting[0]


def _merged(rows: Sequence[Located], source: SourceSection) -> Fields:
    """One row with every column that any row fills, so that a bad row or two do not decide."""
    label = (source.columns or {}).get("label", "label")
    data: dict[str, Any] = {}
    for row in rows:
        for name, value in row.data.items():
            if data.get(name) is None or (name == label and _weight(value) > _weight(data[name])):
                data[name] = value
    return Fields(Located(source.path, 1, data), source.columns, source.template)


def _weight(label: Any) -> int:
    """How much one row's label says of all: true or false make them judgements, else any word or number but 0 and 1 makes them classes."""
    return 2 if is_judgement(label) else int(label is not None and as_boolean(label) is None)


def _has_columns(f: Fields, format: Format) -> bool:
    return any(all(f.has(name) for name in names) for names in SPECS[format].needs)


def _check_mapping(rows: Sequence[Located], source: SourceSection) -> None:
    if not source.columns:
        return
    formats: list[Format] = [source.format] if source.format else list(SPECS)
    known = {name for format in formats for names in (*SPECS[format].needs, SPECS[format].optional) for name in names}
    there = {name for row in rows for name in row.data}
    for name, column in source.columns.items():
        if name not in known and not name.startswith(("completion_", "annotator")):
            what = f"format {source.format}" if source.format else "any format"
            raise DataError(source.path, f"columns: {name} is no field of {what}; it has {', '.join(sorted(known))}")
        if column not in there and not (
            source.format == "ultrafeedback" and name == "score"
        ):  # a field of a completion
            raise DataError(source.path, f"columns: {name}: {column}: no such column; found {', '.join(sorted(there))}")


def _found(rows: Sequence[Located]) -> str:
    return ", ".join(dict.fromkeys(name for row in rows for name in row.data)) or "none"


def _refusal(f: Fields, rows: Sequence[Located], source: SourceSection) -> DataError:
    found = _found(rows)
    if source.format:
        said = f"format {source.format} needs the columns {_needed(source.format)}; found {found}"
        candidates: Sequence[Format] = [source.format]
        if fits := [format for format, s in SPECS.items() if s.fits and _has_columns(f, format) and s.fits(f)]:
            return DataError(source.path, f"{said}. These are the columns of format: {' or '.join(fits)}")
    else:
        needs = "; ".join(f"{format}: {_needed(format)}" for format in _GENERAL)
        said = (
            f"no format fits the columns found: {found}; the general ones need {needs} (all formats: docs/formats.md)"
        )
        candidates = [format for format in _GENERAL if format != "unpaired"]
        if f.has("instruction") and f.has("chosen"):
            candidates = ["alpaca"]
    return DataError(
        source.path, f"{said}. Say which column is which, for example\n  {_suggestion(candidates, f.data)}"
    )


def _needed(format: Format) -> str:
    return " or ".join(", ".join(names) for names in SPECS[format].needs)


def _suggestion(candidates: Sequence[Format], data: Mapping[str, Any]) -> str:
    """A `columns:` line: the first candidate whose every column can be guessed, else one with gaps to fill."""
    lower = {c.lower(): c for c in data}
    for format in candidates:
        for names in SPECS[format].needs:
            guess = {n: next((lower[s] for s in _SYNONYMS.get(n, (n,)) if s in lower), None) for n in names}
            if all(guess.values()) and len(set(guess.values())) == len(guess):
                return _line(format, guess)
    format = candidates[0] if len(candidates) == 1 else "demonstration"
    names = SPECS[format].needs[0]
    return _line(format, {n: n if n in data else f"<the column that holds it: {n}>" for n in names})


def _line(format: Format, mapping: Mapping[str, str | None]) -> str:
    return f"format: {format}, columns: {{{', '.join(f'{n}: {c}' for n, c in mapping.items())}}}"
