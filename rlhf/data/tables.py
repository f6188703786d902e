"""Canonical rows as parquet that `datasets.load_dataset(folder)` and TRL read as it is.

The schema is fixed by the rows' kind, never guessed from their values: text is a string, or a list of {role, content} (what
TRL calls conversational); ranking is int64, scores and margin float64 and null where unknown. Used by `build`, and by
whatever else writes rows for a later stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.data.rows import Row, kind_of

if TYPE_CHECKING:
    import pyarrow as pa


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """One parquet file of canonical rows of one kind. Its folder is made; an existing file is replaced."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema_of(rows)), path, row_group_size=10_000)


def schema_of(rows: Sequence[Row]) -> pa.Schema:
    """The schema for rows of one kind; optional columns are there when any row has them."""
    import pyarrow as pa

    first = rows[0]
    text = pa.string()
    if isinstance(first["prompt"], list):
        text = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    columns = {
        "demonstration": {"prompt": text, "completion": text},
        "preference": {"prompt": text, "chosen": text, "rejected": text, "margin": pa.float64()},
        "ranking": {
            "prompt": text,
            "completions": pa.list_(text),
            "ranking": pa.list_(pa.int64()),
            "scores": pa.list_(pa.float64()),
        },
        "prompt": {"prompt": text},
    }[kind_of(first)]
    there = {name for row in rows for name in row}
    return pa.schema([(name, kind) for name, kind in columns.items() if name in there])
