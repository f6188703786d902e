"""CSV and TSV files as rows. A record that cannot be read costs itself, not what follows.

Below `sources`. Python's own reader goes on after an unclosed quote by taking the rest of the file for one cell; here such a record is set aside and
the next line starts anew.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhf.data.readers.text_files import BROKEN_OFF, TextFile
from rlhf.data.rows import Located, Quarantine
from rlhf.errors import DataError

_MAX_RECORD_LINES = 10_000  # a cell over more lines than this is an unclosed quote

csv.field_size_limit(2**31 - 1)


def read_csv(file: TextFile, delimiter: str) -> Iterator[Located]:
    """Rows under a header line; every cell is text. A TSV whose quotes do not pair up has no quoting at all."""
    quoting = csv.QUOTE_MINIMAL if delimiter == "," or _is_quoted(file, delimiter) else csv.QUOTE_NONE
    lines = _Lines(file.stream)
    if lines.peek(0) is None:
        return
    header = _record(lines, delimiter, quoting) or []
    if len(set(header)) != len(header) or not header or not all(h.strip() for h in header):
        raise DataError(file.name, f"the header needs names that differ, found: {', '.join(map(repr, header))}", row=1)
    row = 0
    while (line := lines.peek(0)) is not None:
        if not line.strip("\r\n"):
            lines.skip(1)
            continue
        row += 1
        number = lines.number
        cells = _record(lines, delimiter, quoting)
        is_torn = lines.peek(0) is None and file.broken  # the last record of a broken file has the break's own entry
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
    """A file's lines, of which those that a record may still need are held."""

    def __init__(self, stream: Iterable[str]) -> None:
        self.number = 1  # of the next line
        self._stream = iter(stream)
        self._held: deque[str] = deque()

    def peek(self, ahead: int) -> str | None:
        """A line that is still to come, None after the last."""
        while len(self._held) <= ahead:
            line = next(self._stream, None)
            if line is None:
                return None
            self._held.append(line)
        return self._held[ahead]

    def coming(self, most: int) -> Iterator[str]:
        """The next lines, without moving on."""
        for ahead in range(most):
            line = self.peek(ahead)
            if line is None:
                return
            yield line

    def skip(self, count: int) -> None:
        """Move on."""
        self.number += count
        for _ in range(count):
            self._held.popleft()


def _record(lines: _Lines, delimiter: str, quoting: int) -> list[str] | None:
    """The cells of the record that starts here, moving on behind it; None where its quotes do not pair up: then one line is passed over."""
    reader = csv.reader(lines.coming(_MAX_RECORD_LINES), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    try:
        cells = next(reader)
    except (csv.Error, StopIteration):
        lines.skip(1)
        return None
    lines.skip(reader.line_num)
    return cells


def _is_quoted(file: TextFile, delimiter: str) -> bool:
    """Whether the whole file reads as records of one length; it is read once more for that."""
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
