"""Which format a file has, told from its columns. Where no format fits, the error holds a `columns:` line to paste.

Used by `load`, between `sources` (raw rows) and `formats` (canonical rows). A format is taken only where the columns leave one
reading, or where the method takes the rows of one reading only. In every other case the recipe must say `format:`. An example with
two readings: a prompt, a completion and a label of 0 or 1 may be a KTO row, or a row of two classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlhf.data.formats import SPECS, Fields, convert
from rlhf.data.formats.fields import as_boolean, is_judgement
from rlhf.data.formats.orders import RANKS
from rlhf.data.formats.templates import check
from rlhf.data.rows import Kind, Located, Row, kind_of
from rlhf.errors import DataError
from rlhf.recipe.sections import Format, SourceSection

SAMPLE = 100  # rows that are looked at: a file's first row may lack a column

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
# The formats that any file can be mapped to, and the kind of row that each makes. An error lists them in this order.
_GENERAL: Mapping[Format, Kind] = {
    "preference": "preference",
    "scored": "ranking",
    "unpaired": "unpaired",
    "demonstration": "demonstration",
    "prompt": "prompt",
}


def choose(
    rows: Sequence[Located],
    source: SourceSection,
    kinds: Collection[str] | None = None,
    others: Collection[str] = (),
) -> Format:
    """The source's format: the one that it names, checked against the columns, or the one that the columns show.

    `rows` are the source's first `SAMPLE` rows; a column counts when any of them has it. `kinds` are the kinds of row that the method
    takes, None where any kind is good. `others` are columns that a reward reads: `columns` may map them, and they are no answers
    that the format would throw away. Raises DataError with the columns found, the columns needed and a `columns:` line to
    start from, or with the formats to choose between. Raises RecipeError for a template that the format cannot fill.
    """
    _check_mapping(rows, source, others)
    f = _merged(rows, source)
    if "ranks" in f.data and "ranks" not in f.columns and not any(map(f.has, ("ranking", "scores", "comparisons"))):
        raise DataError(source.path, f"{RANKS} (columns found: {_found(rows)})", field="ranks")
    if source.format:
        fitting = [source.format] if _has_columns(f, source.format) else []
    else:
        fitting = _fitting(f) or _fitting(_without(f, others))
        if len(fitting) > 1 and kinds:
            fitting = _taken(fitting, rows, source, kinds)
    if not fitting or _is_pair_beside_answer(f, source, kinds):
        raise _refusal(f, rows, source, kinds)
    if len(fitting) > 1:
        readings = " or ".join(f"format: {format}" for format in fitting)
        raise DataError(source.path, f"the columns {_found(rows)} can be read in {len(fitting)} ways; say {readings}")
    check(source, SPECS[fitting[0]], fitting[0])
    return fitting[0]


def _fitting(f: Fields) -> list[Format]:
    """The formats whose columns are there, and against which nothing else in the row speaks."""
    return [format for format, spec in SPECS.items() if spec.fits and _has_columns(f, format) and spec.fits(f)]


def _without(f: Fields, others: Collection[str]) -> Fields:
    """The row without some of its columns."""
    data = {name: value for name, value in f.data.items() if name not in others}
    return Fields(Located(f.located.file, f.located.row, data))


def _taken(
    fitting: list[Format], rows: Sequence[Located], source: SourceSection, kinds: Collection[str]
) -> list[Format]:
    """Those of the formats whose rows the method takes; the first, where only prompts are wanted and all give the same prompt."""
    made = {format: row for format in fitting if (row := _first_row(rows, format, source)) is not None}
    if taken := [format for format, row in made.items() if kind_of(row) in kinds]:
        return taken
    if "prompt" in kinds and made and all(row["prompt"] == made[fitting[0]]["prompt"] for row in made.values()):
        return fitting[:1]
    return fitting


def _first_row(rows: Sequence[Located], format: Format, source: SourceSection) -> Row | None:
    """The first row that the format can convert."""
    for row in rows:
        try:
            return convert(row, format, source)
        except DataError:
            continue
    return None


def _is_pair_beside_answer(f: Fields, source: SourceSection, kinds: Collection[str] | None) -> bool:
    """Whether an instruction has both an answer and a pair, and neither the recipe nor the method says which is meant."""
    both = f.has("instruction") and f.has("output") and f.has("chosen") and f.has("rejected")
    return both and source.format is None and not (kinds and "preference" in kinds)


def _merged(rows: Sequence[Located], source: SourceSection) -> Fields:
    """One row with every column that any row fills, so that a bad row or two do not decide."""
    label = (source.columns or {}).get("label", "label")
    data: dict[str, Any] = {}
    for row in rows:
        for name, value in row.data.items():
            if data.get(name) is None or (name == label and _weight(value) > _weight(data[name])):
                data[name] = value
    return Fields(Located(source.path, 1, data), source.columns)


def _weight(label: Any) -> int:
    """How much one row's label says of all: true or false make them judgements, else any word or number but 0 and 1 makes them classes."""
    return 2 if is_judgement(label) else int(label is not None and as_boolean(label) is None)


def _has_columns(f: Fields, format: Format) -> bool:
    return any(all(f.has(name) for name in names) for names in SPECS[format].needs)


def _check_mapping(rows: Sequence[Located], source: SourceSection, others: Collection[str]) -> None:
    if not source.columns:
        return
    formats: list[Format] = [source.format] if source.format else list(SPECS)
    known = {name for format in formats for names in (*SPECS[format].needs, SPECS[format].optional) for name in names}
    known |= set(others)
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


def _refusal(f: Fields, rows: Sequence[Located], source: SourceSection, kinds: Collection[str] | None) -> DataError:
    """Why no format is taken: the columns found, those needed, and a `columns:` line to start from."""
    found = _found(rows)
    candidates: Sequence[Format]
    if source.format:
        said = f"format {source.format} needs the columns {_needed(source.format)}; found {found}"
        candidates = [source.format]
        if fits := _fitting(f):
            return DataError(source.path, f"{said}. These are the columns of format: {' or '.join(fits)}")
    elif _is_pair_beside_answer(f, source, kinds):
        return DataError(
            source.path,
            f"the columns {found} hold both an answer (output) and a pair (chosen, rejected). Say format: alpaca to read the "
            "pairs (SFT then trains on chosen); to read the answers instead, take chosen and rejected out of the file",
        )
    else:
        candidates = [format for format, kind in _GENERAL.items() if kinds is None or kind in kinds] or list(_GENERAL)
        needs = "; ".join(f"{format}: {_needed(format)}" for format in candidates)
        takes = f" of {' or '.join(sorted(kinds))} rows, which this method takes" if kinds else ""
        said = f"no format fits the columns found: {found}; the general ones{takes} need {needs} (all formats: docs/formats.md)"
        if f.has("instruction") and f.has("chosen") and "preference" in candidates:
            candidates = ["alpaca"]
        elif line := _best_first(f.data):
            return DataError(source.path, f"{said}. If the answers are listed from best to worst, say\n  {line}")
    return DataError(
        source.path, f"{said}. Say which column is which, for example\n  {_suggestion(candidates, f.data)}"
    )


def _best_first(data: Mapping[str, Any]) -> str | None:
    """The `columns:` line of a prompt with a list of answers and nothing that ranks them, such as {prompt, response: [...]}."""
    lower = {c.lower(): c for c in data}
    prompt = next((lower[s] for s in _SYNONYMS["prompt"] if isinstance(data.get(lower.get(s, "")), str)), None)
    for name in (*_SYNONYMS["completions"], *_SYNONYMS["completion"]):
        value = data.get(lower.get(name, ""))
        if prompt and isinstance(value, list) and len(value) > 1 and all(isinstance(v, str) for v in value):
            return _line("ranking", {"prompt": prompt, "best_first": lower[name]})
    return None


def _needed(format: Format) -> str:
    return " or ".join(", ".join(names) for names in SPECS[format].needs)


def _suggestion(candidates: Sequence[Format], data: Mapping[str, Any]) -> str:
    """A `columns:` line: of the first candidate whose columns can all be guessed, else a line with gaps to fill."""
    lower = {c.lower(): c for c in data}
    for format in candidates:
        if format == "unpaired" and len(candidates) > 1:
            continue  # a column that is called label may hold classes
        for names in SPECS[format].needs:
            guess = {n: next((lower[s] for s in _SYNONYMS.get(n, (n,)) if s in lower), None) for n in names}
            if all(guess.values()) and len(set(guess.values())) == len(guess):
                return _line(format, guess)
    format = "demonstration" if "demonstration" in candidates else candidates[0]
    names = SPECS[format].needs[0]
    return _line(format, {n: n if n in data else f"<the column that holds it: {n}>" for n in names})


def _line(format: Format, mapping: Mapping[str, str | None]) -> str:
    return f"format: {format}, columns: {{{', '.join(f'{n}: {c}' for n, c in mapping.items())}}}"
