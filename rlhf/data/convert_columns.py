"""Whole columns to canonical rows at once: the fast path of `load` for parquet and arrow files of plain text columns.

A format that only renames columns and puts text around them needs no Python code for each row. Whole columns are searched for what could
make a row bad (null, blank, a NUL, equal sides, invalid UTF-8). A row in doubt goes through `formats.convert`, which alone decides and gives
the reason. So the result is the same as row by row, only sooner; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlhf.data.where import own_group
from rlhf.recipe.sections import Format, SourceSection

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Around:
    """A canonical column: the text of a file's column, between two fixed texts."""

    column: str
    before: str = ""
    after: str = ""


_PROMPT = {"prompt": Around("prompt")}
PLANS: Mapping[Format, Mapping[str, Around]] = {
    "stack_exchange_paired": {
        "prompt": Around("question", "Question: ", "\n\nAnswer: "),
        "chosen": Around("response_j"),
        "rejected": Around("response_k"),
    },
    "preference": _PROMPT | {"chosen": Around("chosen"), "rejected": Around("rejected")},
    "demonstration": _PROMPT | {"completion": Around("completion")},
    "prompt": _PROMPT,
    "kochatgpt_ppo": _PROMPT,
}
# Columns that give a row another reading, or a value to check: with one of these the rows go one by one.
_OTHERWISE = {
    "preference": ("margin", "messages", "chosen_ended", "rejected_ended", "tools"),
    "demonstration": ("messages", "label", "ended", "tools"),
    "prompt": ("tools",),
}


@dataclass(frozen=True)
class Converted:
    """The rows of a batch that are beyond doubt, as canonical columns, and which they are; and those in doubt."""

    columns: dict[str, pa.Array]
    rows: Indices
    doubtful: Indices


def columns_for(format: Format, source: SourceSection, schema: pa.Schema) -> list[str] | None:
    """The file's columns that the fast path reads, or None where this source has to go row by row."""
    plan = PLANS.get(format)
    if plan is None or source.template is not None or source.where or source.max_rows:
        return None
    names = dict(source.columns or {})
    if any(names.get(other, other) in schema.names for other in _OTHERWISE.get(format, ())):
        return None
    found = [names.get(around.column, around.column) for around in plan.values()]
    if any(n not in schema.names or not _is_text(schema.field(n).type) for n in found):
        return None
    group = source.group or own_group(schema.names, names)
    if group is None:
        return found
    kind = schema.field(group).type if group in schema.names else pa.null()
    return list(dict.fromkeys([*found, group])) if _is_text(kind) or pa.types.is_integer(kind) else None


def convert_batch(batch: pa.RecordBatch, format: Format, source: SourceSection) -> Converted:
    """The canonical columns of a batch. `columns_for` must have allowed it."""
    names = dict(source.columns or {})
    plan = PLANS[format]
    raw = {name: batch.column(names.get(around.column, around.column)) for name, around in plan.items()}
    plain = {names.get(around.column, around.column) for around in plan.values()}
    group = source.group or next((name for name in batch.schema.names if name not in plain), None)
    texts = list(raw.values())
    if group is not None and _is_text(batch.schema.field(group).type):
        texts.append(batch.column(group))
    if not all(map(_is_unicode, texts)):
        return Converted({}, np.empty(0, dtype=np.int64), np.arange(batch.num_rows))
    doubt = np.zeros(batch.num_rows, dtype=bool)
    for column in texts:
        doubt |= _suspect(column)
    if "chosen" in raw:
        doubt |= pc.fill_null(pc.equal(raw["chosen"], raw["rejected"]), True).to_numpy(zero_copy_only=False)
    if source.group:  # rows without their group are refused only where one was asked for
        doubt |= batch.column(source.group).is_null().to_numpy(zero_copy_only=False)
    good, doubtful = np.flatnonzero(~doubt), np.flatnonzero(doubt)
    if len(doubtful):
        raw = {name: column.take(pa.array(good)) for name, column in raw.items()}
    columns = {name: _around(column, plan[name]) for name, column in raw.items()}
    if group is not None:
        values = batch.column(group).cast(pa.string())
        columns["group"] = values.take(pa.array(good)) if len(doubtful) else values
    return Converted(columns, good, doubtful)


def _around(column: pa.Array, around: Around) -> pa.Array:
    if not (around.before or around.after):
        return column
    column = column.cast(pa.string())
    return pc.binary_join_element_wise(around.before, column, around.after, "")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_unicode(column: pa.Array) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _suspect(column: pa.Array) -> Any:
    """Which values are null, blank, or hold a NUL."""
    blank = pc.or_(pc.utf8_is_space(column), pc.equal(pc.binary_length(column), 0))
    suspect = pc.fill_null(blank, True).to_numpy(zero_copy_only=False).copy()
    width = np.int64 if pa.types.is_large_string(column.type) else np.int32
    _, offsets, data = column.buffers()
    if data is None or not len(column):
        return suspect
    ends = np.frombuffer(offsets, dtype=width)[column.offset : column.offset + len(column) + 1]
    characters = np.frombuffer(data, dtype=np.uint8)[ends[0] : ends[-1]]
    if len(characters) and not characters.min():
        at = np.flatnonzero(characters == 0) + ends[0]
        suspect[np.searchsorted(ends, at, side="right") - 1] = True
    return suspect
