"""Parquet and arrow files as batches and as rows. `sources` reads the rows, `convert_columns` the batches.

Files are read batch by batch, so memory holds one batch, and only the columns that the caller needs.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.data.readers.names import suffix_of
from rlhf.data.readers.text_files import accept
from rlhf.data.rows import Located, Quarantine
from rlhf.errors import DataError

BATCH_ROWS = 4096
BATCH_BYTES = 1 << 26
ROWS_AT_ONCE = 128  # rows made into Python objects together: a reader of the first rows pays for few
# What pyarrow raises for values that Python cannot hold: bytes that are not UTF-8, times out of range, unknown time zones (before
# pyarrow 24, the KeyError of the zone library).
_NOT_IN_PYTHON = (ValueError, OverflowError, KeyError, pa.ArrowNotImplementedError)
_ARROW = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowKeyError)
_BROKEN = (*_ARROW, OSError, EOFError, zlib.error)


def table_schema(path: Path) -> pa.Schema:
    """The file's columns and types. Raises DataError for a file that is not what its name says, or has two columns of one name."""
    with _opened(path) as file, _reported(path):
        return _checked(pq.read_schema(file) if suffix_of(path) == ".parquet" else _arrow(file)[0], path)


def table_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The file's batches, of some columns or of all. Raises DataError as `table_schema` does, and for a file that is broken."""
    names = list(columns) if columns is not None else None
    with _opened(path) as file, _reported(path):
        if suffix_of(path) == ".parquet":
            table = pq.ParquetFile(file)
            _checked(table.schema_arrow, path)
            yield from table.iter_batches(_batch_rows(table.metadata), columns=names, use_threads=False)
            return
        schema, batches = _arrow(file)
        _checked(schema, path)
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                part = batch.slice(start, BATCH_ROWS)
                yield part if names is None else part.select(names)


def _arrow(file: Any) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
    """The schema and batches of an arrow file: a stream, as `datasets` writes, or a file with an index."""
    try:
        stream = pa.ipc.open_stream(file)
        return stream.schema, stream
    except pa.ArrowInvalid:
        file.seek(0)
        indexed = pa.ipc.open_file(file)
        return indexed.schema, (indexed.get_batch(i) for i in range(indexed.num_record_batches))


def read_table(path: Path, quarantine: Quarantine) -> Iterator[Located]:
    """The file's rows as dicts, numbered from 1. A row that cannot be stored as text goes to the quarantine."""
    row = 1
    for batch in (b.slice(at, ROWS_AT_ONCE) for b in table_batches(path) for at in range(0, b.num_rows, ROWS_AT_ONCE)):
        try:
            rows: Sequence[dict[str, Any] | str] = batch.to_pylist()
        except _NOT_IN_PYTHON:
            batch = _as_numbers(batch)
            rows = [_row_at(batch, i) for i in range(batch.num_rows)]
        for data in rows:
            if located := _accept(data, path, row, quarantine):
                yield located
            row += 1


def rows_at(
    batch: pa.RecordBatch, indices: Sequence[int], path: Path, first: int, quarantine: Quarantine
) -> Iterator[Located]:
    """Some rows of a batch, as `read_table` gives them; row 0 of the batch is the file's row `first`."""
    batch = _as_numbers(batch)
    for index in indices:
        if located := _accept(_row_at(batch, index), path, first + index, quarantine):
            yield located


def _accept(data: dict[str, Any] | str, path: Path, row: int, quarantine: Quarantine) -> Located | None:
    """The row, if it can be stored. A text in the row's place says why there is no row."""
    if isinstance(data, dict):
        return accept(str(path), row, data, quarantine)
    quarantine.rows_in += 1
    quarantine.add(str(path), row, None, data)
    return None


def _row_at(batch: pa.RecordBatch, index: int) -> dict[str, Any] | str:
    try:
        row: dict[str, Any] = batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return "not valid Unicode"
    except _NOT_IN_PYTHON as error:
        return f"holds a value that Python cannot hold: {error}"
    return row


def _as_numbers(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, with whole numbers in place of times that Python cannot hold (the year 60000, an unknown time zone).

    No format reads a time, so such a column is no reason to lose the row.
    """
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_temporal(column.type):
            try:
                column.to_pylist()
            except _NOT_IN_PYTHON:
                column = column.view(pa.int32() if column.type.bit_width == 32 else pa.int64())
        columns[name] = column
    return pa.RecordBatch.from_pydict(columns)


def _batch_rows(about: pq.FileMetaData) -> int:
    """How many rows to read at once. Fewer where rows are long, so that a batch takes about the same memory in every file."""
    groups = (about.row_group(i) for i in range(about.num_row_groups))
    longest = max((g.total_byte_size // max(g.num_rows, 1) for g in groups), default=0)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(longest, 1)))


def _checked(schema: pa.Schema, path: Path) -> pa.Schema:
    if len(set(schema.names)) < len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise DataError(str(path), "two columns have this name", field=twice)
    return schema


def _opened(path: Path) -> Any:
    """The file for reading. A gzipped file is unpacked whole, since both formats are read from their end."""
    with _reported(path):
        if path.suffix == ".gz":
            return pa.BufferReader(gzip.decompress(path.read_bytes()))
        return pa.OSFile(str(path), "rb")


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turns what pyarrow and zlib raise into a DataError with the file's name."""
    try:
        yield
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno and not isinstance(error, gzip.BadGzipFile):
            raise DataError(str(path), f"cannot be read: {os.strerror(error.errno)}") from error
        raise DataError(str(path), f"not a whole {suffix_of(path)[1:]} file: {error}") from error
