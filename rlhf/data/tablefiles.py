"""Parquet and arrow files as batches and as rows. Below `sources`; `columnar` reads the batches.

Memory is that of one batch: files are read by streaming, and only the columns that are asked for.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.data.rows import Located, Quarantine
from rlhf.data.textfiles import flaw
from rlhf.errors import DataError

SUFFIXES = (".parquet", ".arrow")
BATCH_ROWS = 4096
ROWS_AT_ONCE = 128  # made into Python objects together; who looks at the first rows only pays for few


def is_table(path: Path) -> bool:
    """Whether a file is a parquet or arrow file by its name."""
    return _suffix(path) in SUFFIXES


def table_schema(path: Path) -> pa.Schema:
    """The file's columns and types. Raises DataError for a file that is not what its name says."""
    with _opened(path) as file, _reported(path):
        if _suffix(path) == ".parquet":
            return pq.read_schema(file)
        try:
            return pa.ipc.open_stream(file).schema
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_file(file).schema


def table_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The file's batches, of some columns or of all. Raises DataError for a file that is broken or not what its name says."""
    names = list(columns) if columns is not None else None
    with _opened(path) as file, _reported(path):
        if _suffix(path) == ".parquet":
            yield from pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=names, use_threads=False)
            return
        try:
            batches: Any = pa.ipc.open_stream(file)  # what `datasets` writes
        except pa.ArrowInvalid:
            file.seek(0)
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                part = batch.slice(start, BATCH_ROWS)
                yield part if names is None else part.select(names)


def read_table(path: Path, quarantine: Quarantine) -> Iterator[Located]:
    """The file's rows as dicts, numbered from 1; a row that cannot be stored as text goes to the quarantine."""
    row = 1
    for batch in (b.slice(at, ROWS_AT_ONCE) for b in table_batches(path) for at in range(0, b.num_rows, ROWS_AT_ONCE)):
        try:
            rows: Sequence[dict[str, Any] | None] = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_row_at(batch, i) for i in range(batch.num_rows)]
        for data in rows:
            yield from _accept(data, path, row, quarantine)
            row += 1


def rows_at(
    batch: pa.RecordBatch, indices: Sequence[int], path: Path, first: int, quarantine: Quarantine
) -> Iterator[Located]:
    """Some rows of a batch whose row 0 is the file's row `first`, as `read_table` gives them."""
    for index in indices:
        yield from _accept(_row_at(batch, index), path, first + index, quarantine)


def _accept(data: dict[str, Any] | None, path: Path, row: int, quarantine: Quarantine) -> Iterator[Located]:
    quarantine.rows_in += 1
    field, reason = flaw(data) if data is not None else (None, "not valid Unicode")
    if data is None or reason:
        quarantine.add(str(path), row, field, reason or "")
    else:
        yield Located(str(path), row, data)


def _row_at(batch: pa.RecordBatch, index: int) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return None
    return row


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
        if isinstance(error, pa.ArrowInvalid | OSError | EOFError | zlib.error):
            raise DataError(str(self.path), f"not a whole {_suffix(self.path)[1:]} file: {error}") from error
