"""Parquet and arrow files as batches and as rows. `sources` reads the rows, `convert_columns` the batches.

Files are read batch by batch, so memory holds one batch, and only the columns that are asked for.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.data.readers.text_files import flaw
from rlhf.data.rows import Located, Quarantine
from rlhf.errors import DataError

BATCH_ROWS = 4096
BATCH_BYTES = 1 << 26
# what pyarrow raises for values that Python cannot hold: bytes that are no UTF-8, times out of range, unknown zones (until
# pyarrow 24 the zone library's own KeyError)
_NOT_IN_PYTHON = (ValueError, OverflowError, KeyError, pa.ArrowNotImplementedError)
_BROKEN = (
    pa.ArrowInvalid,
    pa.ArrowNotImplementedError,
    pa.ArrowTypeError,
    pa.ArrowKeyError,
    OSError,
    EOFError,
    zlib.error,
)
ROWS_AT_ONCE = 128  # made into Python objects together; who looks at the first rows only pays for few


def table_schema(path: Path) -> pa.Schema:
    """The file's columns and types. Raises DataError for a file that is not what its name says, or has two columns of one name."""
    with _opened(path) as file, _reported(path):
        if _suffix(path) == ".parquet":
            return _checked(pq.read_schema(file), path)
        try:
            return _checked(pa.ipc.open_stream(file).schema, path)
        except pa.ArrowInvalid:
            file.seek(0)
            return _checked(pa.ipc.open_file(file).schema, path)


def table_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The file's batches, of some columns or of all. Raises DataError as `table_schema` does, and for a file that is broken."""
    names = list(columns) if columns is not None else None
    with _opened(path) as file, _reported(path):
        if _suffix(path) == ".parquet":
            table = pq.ParquetFile(file)
            _checked(table.schema_arrow, path)
            yield from table.iter_batches(_batch_rows(table.metadata), columns=names, use_threads=False)
            return
        try:
            reader: Any = pa.ipc.open_stream(file)  # what `datasets` writes
            batches: Any = reader
        except pa.ArrowInvalid:
            file.seek(0)
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        _checked(reader.schema, path)
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                part = batch.slice(start, BATCH_ROWS)
                yield part if names is None else part.select(names)


def read_table(path: Path, quarantine: Quarantine) -> Iterator[Located]:
    """The file's rows as dicts, numbered from 1; a row that cannot be stored as text goes to the quarantine."""
    row = 1
    for batch in (b.slice(at, ROWS_AT_ONCE) for b in table_batches(path) for at in range(0, b.num_rows, ROWS_AT_ONCE)):
        try:
            rows: Sequence[dict[str, Any] | str] = batch.to_pylist()
        except _NOT_IN_PYTHON:
            batch = _as_numbers(batch)
            rows = [_row_at(batch, i) for i in range(batch.num_rows)]
        for data in rows:
            yield from _accept(data, path, row, quarantine)
            row += 1


def rows_at(
    batch: pa.RecordBatch, indices: Sequence[int], path: Path, first: int, quarantine: Quarantine
) -> Iterator[Located]:
    """Some rows of a batch whose row 0 is the file's row `first`, as `read_table` gives them."""
    batch = _as_numbers(batch)
    for index in indices:
        yield from _accept(_row_at(batch, index), path, first + index, quarantine)


def _accept(data: dict[str, Any] | str, path: Path, row: int, quarantine: Quarantine) -> Iterator[Located]:
    """The row; a text instead of one is the reason why there is none."""
    quarantine.rows_in += 1
    field, reason = (None, data) if isinstance(data, str) else flaw(data)
    if isinstance(data, str) or reason:
        quarantine.add(str(path), row, field, reason or "")
    else:
        yield Located(str(path), row, data)


def _row_at(batch: pa.RecordBatch, index: int) -> dict[str, Any] | str:
    try:
        row: dict[str, Any] = batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return "not valid Unicode"
    except _NOT_IN_PYTHON as error:
        return f"holds a value that Python cannot: {error}"
    return row


def _as_numbers(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with the columns of times that Python has no value for (the year 60000, an unknown time zone) as whole numbers.

    No format reads a time, so that such a column is no reason to lose the row.
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
    """Rows to read at once, so that a batch of a file with long rows takes no more room than one with short ones."""
    groups = (about.row_group(i) for i in range(about.num_row_groups))
    longest = max((g.total_byte_size // max(g.num_rows, 1) for g in groups), default=0)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(longest, 1)))


def _checked(schema: pa.Schema, path: Path) -> pa.Schema:
    if len(set(schema.names)) < len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise DataError(str(path), "two columns have this name", field=twice)
    return schema


def _suffix(path: Path) -> str:
    return (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix).lower()


def _opened(path: Path) -> Any:
    """The file for reading; what is gzipped is unpacked whole, since both formats are read from their end."""
    with _reported(path):
        if path.suffix == ".gz":
            return pa.BufferReader(gzip.decompress(path.read_bytes()))
        return pa.OSFile(str(path), "rb")


class _reported:
    """Turns what pyarrow and zlib raise into a DataError with the file's name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) and error.errno and not isinstance(error, gzip.BadGzipFile):
            raise DataError(str(self.path), f"cannot be read: {os.strerror(error.errno)}") from error
        if isinstance(error, _BROKEN):
            raise DataError(str(self.path), f"not a whole {_suffix(self.path)[1:]} file: {error}") from error
