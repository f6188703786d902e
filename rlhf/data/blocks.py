"""Blocks of canonical rows as Arrow tables, and a spill file of them: how `data` holds more rows than fit in memory.

A block is a pyarrow Table of some thousand rows of one kind: the canonical columns (see `parquet_rows`), and three columns that say where each row came from:

    _file  string (dictionary)   the source file
    _row   int64                 its place there (see `Located`)
    _unit  int64                 rows that share it stand for one thing: the pairs of one ranking, the rows of one group

A `Spill` takes blocks in order into a file and gives them back, whole or only some columns, as often as asked. The memory used is that of
one block. Unlike `datasets.Dataset`, it caches nothing; and a step selects rows by a mask over the spill, it does not write
them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlhf.data.parquet_rows import extra_of, schema_of, shape_of
from rlhf.data.rows import Located, chunks, flat, kind_of
from rlhf.errors import DataError

ORIGIN = ("_file", "_row", "_unit")
_ORIGIN_TYPES = {"_file": pa.dictionary(pa.int32(), pa.string()), "_row": pa.int64(), "_unit": pa.int64()}

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def to_block(rows: Sequence[Located]) -> pa.Table:
    """Rows of one kind and form as a block. Raises DataError for a row of another kind than the first."""
    first = shape_of(rows[0].data)
    for row in rows:
        if shape_of(row.data) != first:
            raise row.error(_mixed(rows[0].file, first, shape_of(row.data)))
    table = pa.Table.from_pylist([{**r.data, "group": r.group} for r in rows], schema=schema_of(rows[0].data))
    origin = {"_file": [r.file for r in rows], "_row": [r.row for r in rows], "_unit": [r.unit for r in rows]}
    for name, values in origin.items():
        table = table.append_column(name, pa.array(values, type=_ORIGIN_TYPES[name]))
    return table


def block_of(columns: dict[str, pa.Array], file: str, rows: np.ndarray, units: np.ndarray) -> pa.Table:
    """A block of one file from canonical columns that are already arrays; what the kind may have beside them is null."""
    sample = dict.fromkeys(columns, "")
    schema = schema_of(sample)
    n = len(rows)
    arrays = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(n, f.type) for f in schema]
    table = pa.Table.from_arrays(arrays, schema=schema)
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, dtype=np.int32)), pa.array([file]))
    for name, column in zip(ORIGIN, (names, pa.array(rows), pa.array(units)), strict=True):
        table = table.append_column(name, column)
    return table


def to_rows(block: pa.Table) -> Iterator[Located]:
    """A block's rows; what is null in a row is absent from it."""
    for row in block.to_pylist():
        file, number, unit = (row.pop(name) for name in ORIGIN)
        group = row.pop("group", None)
        yield Located(file, number, _without_nulls(row), unit, group)


def _without_nulls(value: Any) -> Any:
    """A row, or a message, without its null fields."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return (
        [_without_nulls(v) for v in value]
        if isinstance(value, list) and value and isinstance(value[0], dict | list)
        else value
    )


def _mixed(file: str, first: tuple[str, str], other: tuple[str, str]) -> str:
    (a, form_a), (b, form_b) = first, other
    return (
        f"one folder holds rows of one kind: {file} has {a} rows of {form_a}, this is one of the {b} rows of {form_b}; "
        "build them apart, or give the sources formats (and columns) that make the same kind"
    )


class Spill:
    """Blocks in a file, in order. Write with `add`, then `close`; read with `blocks` as often as needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.used: set[str] = set()  # columns in which any row has a value
        self.extra: set[str] = set()  # fields of messages that any message has, beside role and content
        self.first: tuple[str, tuple[str, str]] | None = None  # (file, (kind, form)) of the first row
        self._sink: Any = None
        self._writer: Any = None

    def add(self, block: pa.Table) -> None:
        """Append a block. Raises DataError when its rows are of another kind than the first block's."""
        if not block.num_rows:
            return
        shape = shape_of_block(block)
        if self.first is None:
            self.first = (block.column("_file")[0].as_py(), shape)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = pa.OSFile(str(self.path), "wb")
            options = pa.ipc.IpcWriteOptions(compression="lz4", emit_dictionary_deltas=True, unify_dictionaries=False)
            self._schema = block.schema
            self._writer = pa.ipc.new_stream(self._sink, block.schema, options=options)
        elif shape != self.first[1]:
            file, row = block.column("_file")[0].as_py(), block.column("_row")[0].as_py()
            raise DataError(file, _mixed(self.first[0], self.first[1], shape), row=row)
        self._writer.write_table(block.select(self._schema.names).combine_chunks())
        self.rows += block.num_rows
        self.extra |= extra_of(block)
        for name in self._schema.names:
            if name not in self.used and block.column(name).null_count < block.num_rows:
                self.used.add(name)

    def add_rows(self, rows: Iterable[Located]) -> None:
        """Append rows, block by block."""
        for chunk in chunks(rows):
            self.add(to_block(chunk))

    def close(self) -> Self:
        """End the writing."""
        if self._writer is not None:
            self._writer.close()
            self._sink.close()
            self._writer = self._sink = None
        return self

    @property
    def kind(self) -> str:
        return self.first[1][0] if self.first else "empty"

    @property
    def columns(self) -> list[str]:
        """The canonical columns and `group`."""
        return [name for name in self._schema.names if name not in ORIGIN] if self.first else []

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The blocks again, in order; only some of the columns (and those of the origin) if named."""
        if self.first is None:
            return
        fields = None
        if columns is not None:
            fields = sorted({self._schema.get_field_index(name) for name in (*columns, *ORIGIN)})
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        with pa.OSFile(str(self.path), "rb") as file, pa.ipc.open_stream(file, options=options) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])


def shape_of_block(block: pa.Table) -> tuple[str, str]:
    """(kind, form) of a block's rows, as `parquet_rows.shape_of` says of one row."""
    is_text = pa.types.is_string(block.schema.field("prompt").type)
    return kind_of(dict.fromkeys(block.column_names)), "text" if is_text else "messages"


def merge(block: pa.Table, rows: list[Located]) -> pa.Table:
    """A block and rows from between its own, in the file's order."""
    both = pa.concat_tables([block, to_block(rows)]).unify_dictionaries()
    return both.take(np.argsort(both.column("_row").to_numpy(), kind="stable"))


@dataclass(frozen=True)
class Rows:
    """Rows of a spill: those whose place in the mask is true. Steps make new masks; only `pairs` makes a new spill."""

    spill: Spill
    keep: Mask

    @classmethod
    def all(cls, spill: Spill) -> Rows:
        return cls(spill.close(), np.ones(spill.rows, dtype=bool))

    def __len__(self) -> int:
        return int(self.keep.sum())

    def without(self, gone: Mask) -> Rows:
        """The rows left when those at the true places of `gone` [len(self)] are taken out."""
        keep = self.keep.copy()
        keep[np.flatnonzero(keep)[gone]] = False
        return Rows(self.spill, keep)

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows in order, as `Spill.blocks` gives them; a block of which nothing is left is passed over."""
        start = 0
        for block in self.spill.blocks(columns):
            part = self.keep[start : start + block.num_rows]
            start += block.num_rows
            if part.any():
                yield block if part.all() else block.filter(pa.array(part))

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """A column of numbers as an array [len(self)]; null is nan."""
        return np.concatenate([b.column(name).to_numpy() for b in self.blocks([name])] or [np.empty(0)])

    def needs(self, column: str, key: str) -> None:
        """Raises DataError, naming the first row and the columns there are, when the rows have no such column."""
        if column not in self.spill.columns or column not in self.spill.used:
            there = [name for name in self.spill.columns if name in self.spill.used]
            raise self.first().error(f"{key}: no such column; these rows have {', '.join(there)}", column)

    def first(self) -> Located:
        """The first row."""
        return next(to_rows(next(self.blocks()).slice(0, 1)))


def texts_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column's values as one string each: text as it is; messages, lists and numbers as `rows.flat` writes them."""
    if pa.types.is_string(column.type):
        return pc.fill_null(column, "")
    return pa.chunked_array([pa.array([flat(value) for value in column.to_pylist()], type=pa.string())])
