"""CSV and TSV files as rows. A record that cannot be read costs itself, not what follows.

Below `sources`. Python's own reader goes on after an unclosed quote by taking the rest of the file for one cell; here such a record is set aside and
the next line starts anew.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from rlhf.data.rows import Located
from rlhf.data.textfiles import BROKEN_OFF, TextFile
from rlhf.errors import DataError

_MAX_RECORD_LINES = 1000  # a cell over more lines than this is an unclosed quote

csv.field_size_limit(2**31 - 1)


def read_csv(file: TextFile, delimiter: str) -> Iterator[Located]:
    """Rows under a header line; every cell is text. A TSV whose quotes do not pair up has no quoting at all."""
    lines = list(file.stream)
    if not lines:
        return
    quoting = csv.QUOTE_MINIMAL if delimiter == "," or _is_quoted(lines, delimiter) else csv.QUOTE_NONE
    header, at = _record(lines, 0, delimiter, quoting) or ([], 1)
    if len(set(header)) != len(header) or not all(h.strip() for h in header):
        raise DataError(file.name, f"the header needs names that differ, found: {', '.join(map(repr, header))}", row=1)
    row = 0
    while at < len(lines):
        if not lines[at].strip("\r\n"):
            at += 1
            continue
        row += 1
        record = _record(lines, at, delimiter, quoting)
        if record is None:
            if not (file.broken and at == len(lines) - 1):
                file.reject(row, f"not CSV: a quote on line {at + 1} is never closed or is closed inside a cell")
            at += 1
            continue
        cells, at = record
        if len(cells) == len(header):
            if located := file.accept(row, dict(zip(header, cells, strict=True))):
                yield located
        elif not (file.broken and at == len(lines)):
            file.reject(row, f"wrong number of cells: {len(cells)} on line {at}, the header has {len(header)}")
    if file.broken:
        file.reject(row + 1, f"{BROKEN_OFF}: {file.broken}")


def _record(lines: list[str], at: int, delimiter: str, quoting: int) -> tuple[list[str], int] | None:
    """The cells of the record that starts at a line, and the line after it; None where its quotes do not pair up."""
    nearby = (lines[i] for i in range(at, min(at + _MAX_RECORD_LINES, len(lines))))
    reader = csv.reader(nearby, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    try:
        cells = next(reader)
    except (csv.Error, StopIteration):
        return None
    return cells, at + reader.line_num


def _is_quoted(lines: list[str], delimiter: str) -> bool:
    try:
        return len({len(r) for r in csv.reader(lines, delimiter=delimiter, strict=True) if r}) == 1
    except csv.Error:
        return False
