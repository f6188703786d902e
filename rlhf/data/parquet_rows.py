"""Canonical rows as parquet that `datasets.load_dataset(folder)` and TRL read as it is.

The schema is fixed by the rows' kind, never guessed from their values: text is a string, or a list of {role, content} (what
TRL calls conversational); ranking is int64, scores and margin float64 and null where unknown. Used by `blocks`, `build`, and by
whatever else writes rows for a later stage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.data.rows import Row, kind_of

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP = 10_000
# Columns that a file leaves out if none of its rows has them.
OPTIONAL = (
    "margin", "ranking", "scores", "models", "rationales", "ended", "chosen_ended", "rejected_ended", "group",
)  # fmt: skip
# Fields of messages that a file leaves out if no message has them.
EXTRA = ("tool_calls", "tool_call_id", "name", "reasoning_content", "train", "tools")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """One parquet file of canonical rows of one kind. Its folder is made; an existing file is replaced."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    schema = schema_of(rows[0])
    there = {name for row in rows for name in row}
    schema = pa.schema([f for f in schema if f.name in there or f.name not in OPTIONAL])
    table = pa.Table.from_pylist(list(rows), schema=schema)
    pq.write_table(without_extra(table, extra_of(table)), path, row_group_size=ROW_GROUP)


def extra_of(table: pa.Table) -> set[str]:
    """The names in `EXTRA` that any message of a table has."""
    return {
        name
        for column in table.columns
        for messages in _messages_in(column)
        for name in EXTRA
        if messages.type.get_field_index(name) >= 0 and messages.field(name).null_count < len(messages)
    }


def without_extra(table: pa.Table, keep: Collection[str]) -> pa.Table:
    """The table whose messages have only those names of `EXTRA`."""
    for i, field in enumerate(table.schema):
        if (narrow := _narrowed(field.type, keep)) != field.type:
            table = table.set_column(i, field.name, table.column(i).cast(narrow))
    return table


def _messages_in(column: pa.ChunkedArray) -> Iterator[pa.StructArray]:
    import pyarrow as pa

    for array in column.chunks:
        while pa.types.is_list(array.type):
            array = array.flatten()
        if pa.types.is_struct(array.type):
            yield array


def _narrowed(kind: pa.DataType, keep: Collection[str]) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_list(kind):
        return pa.list_(_narrowed(kind.value_type, keep))
    if pa.types.is_struct(kind):
        return pa.struct([f for f in kind if f.name not in EXTRA or f.name in keep])
    return kind


def shape_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """(kind, form) of a canonical row; the form is `text` or `messages`. Rows of one shape share a schema."""
    return kind_of(row), "text" if isinstance(row["prompt"], str) else "messages"


def schema_of(row: Mapping[str, Any]) -> pa.Schema:
    """The schema of rows of this one's kind and form, with all that such a row may have, and `group`."""
    import pyarrow as pa

    text = pa.string()
    if not isinstance(row["prompt"], str):
        extra = [(name, pa.bool_() if name == "train" else pa.string()) for name in EXTRA]
        text = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), *extra]))
    columns: dict[str, Any] = {
        "demonstration": {"completion": text, "ended": pa.bool_()},
        "preference": {
            "chosen": text,
            "rejected": text,
            "margin": pa.float64(),
            "chosen_ended": pa.bool_(),
            "rejected_ended": pa.bool_(),
        },
        "ranking": {
            "completions": pa.list_(text),
            "ranking": pa.list_(pa.int64()),
            "scores": pa.list_(pa.float64()),
            "models": pa.list_(pa.string()),
            "rationales": pa.list_(pa.string()),
            "ended": pa.list_(pa.bool_()),
        },
        "unpaired": {"completion": text, "label": pa.bool_(), "ended": pa.bool_()},
        "prompt": {},
    }[kind_of(row)]
    return pa.schema([("prompt", text), *columns.items(), ("group", pa.string())])
