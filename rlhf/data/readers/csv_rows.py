"""CSV and TSV files as rows. A record that cannot be read is lost alone; the records after it are read.

Used by `sources`. After a quote that is never closed, Python's own reader takes the rest of the file for one cell. Here such a record is
set aside, and reading starts again at the next line.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhf.data.readers.text_files import BROKEN_OFF, TextFile
from rlhf.data.rows import Located, Quarantine
from rlhf.errors import DataError

_MAX_RECORD_LINES = 10_000  # a cell with more lines than this has a quote that was never closed

csv.field_size_limit(2**31 - 1)


def read_csv(file: TextFile, delimiter: str) -> Iterator[Located]:
    """The rows below the header line. Every cell is text. In a TSV where some quote has no partner, quotes are ordinary characters."""
    quoting = csv.QUOTE_MINIMAL if delimiter == "," or _is_quoted(file, delimiter) else csv.QUOTE_NONE
    lines = _Lines(file.stream)
    if lines.peek(0) is None:
        return
    header = _record(lines, delimiter, quoting) or []
    if len(set(header)) != len(header) or not header or not all(h.strip() for h in header):
        raise DataError(
            file.name,
            f"the header needs a different name for each column; found: {', '.join(map(repr, header))}",
            row=1,
        )
    row = 0
    while (line := lines.peek(0)) is not None:
        if not line.strip("\r\n"):
            lines.skip(1)
            continue
        row += 1
        number = lines.number
        cells = _record(lines, delimiter, quoting)
        is_torn = lines.peek(0) is None and file.broken  # the end of a broken file has its own entry
        if cells is None:
            if not is_torn:
                file.reject(
                    row,
                    f"not CSV: a quote on line {number} is closed inside a cell, or not within {_MAX_RECORD_LINES:,} lines",
                )
        elif len(cells) == len(header):
            if located := file.accept(row, dict(zip(header, cells, strict=True))):
                yield located
        elif not is_torn:
            last = lines.number - 1
            file.reject(row, f"wrong number of cells: {len(cells)} on line {last}, the header has {len(header)}")
    if file.broken:
        file.reject(row + 1, f"{BROKEN_OFF}: {file.broken}")


class _Lines:
    """A file's lines. Those that the current record may need are kept in memory."""

    def __init__(self, stream: Iterable[str]) -> None:
        self.number = 1  # of the next line
        self._stream = iter(stream)
        self._held: deque[str] = deque()

    def peek(self, ahead: int) -> str | None:
        """The line that is `ahead` lines after the next one; None after the last."""
        while len(self._held) <= ahead:
            line = next(self._stream, None)
            if line is None:
                return None
            self._held.append(line)
        return self._held[ahead]

    def coming(self, most: int) -> Iterator[str]:
        """The next lines; the position stays."""
        for ahead in range(most):
            line = self.peek(ahead)
            if line is None:
                return
            yield line

    def skip(self, count: int) -> None:
        """Move the position by `count` lines."""
        self.number += count
        for _ in range(count):
            self._held.popleft()


def _record(lines: _Lines, delimiter: str, quoting: int) -> list[str] | None:
    """The cells of the record that starts here; the position moves to its end. None where a quote has no partner: the position moves one line."""
    reader = csv.reader(lines.coming(_MAX_RECORD_LINES), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    try:
        cells = next(reader)
    except (csv.Error, StopIteration):
        lines.skip(1)
        return None
    lines.skip(reader.line_num)
    return cells


def _is_quoted(file: TextFile, delimiter: str) -> bool:
    """Whether the whole file can be read as records of one length. The file is read once more to find out."""
    lengths: set[int] = set()
    with TextFile(Path(file.name), file.name, Quarantine()) as again:
        try:
            for record in csv.reader(again.stream, delimiter=delimiter, strict=True):
                if record:
                    lengths.add(len(record))
                if len(lengths) > 1:
                    return False
        except csv.Error:
            return False
    return len(lengths) == 1
