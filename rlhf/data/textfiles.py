"""JSON, JSON Lines, CSV and TSV files as rows, plain or gzipped; a row that cannot be read goes to the quarantine.

Below `sources`. Real files are named wrongly and broken in places: an array is read as an array whatever its name (and
lines as lines), a byte that is not UTF-8 or a repeated key spoils its own row only, a gzip stream that breaks off gives
what came before the break. Unlike `datasets.load_dataset("json")`, one bad row does not end the reading, `NaN` is
no number, and nothing goes missing without an entry.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, Self

from rlhf.data.rows import Located, Quarantine
from rlhf.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")
_MAX_RECORD_LINES = 1000  # a CSV cell over more lines than this is an unclosed quote
BROKEN_OFF = "the gzip stream breaks off here, what follows is lost"

csv.field_size_limit(2**31 - 1)


class _Tolerant(io.RawIOBase):
    """Bytes of a file; a gzip stream that breaks off ends here quietly, and says why in `broken`."""

    def __init__(self, path: Path) -> None:
        self.broken: str | None = None
        self._file = (gzip.open if path.suffix == ".gz" else open)(path, "rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read1(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            self.broken, data = str(e), b""
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class TextFile:
    """A text file open for reading. Bytes that are not UTF-8 become lone surrogates, which `flaw` finds."""

    def __init__(self, path: Path, name: str, quarantine: Quarantine) -> None:
        self.name, self.quarantine = name, quarantine
        self._raw = _Tolerant(path)
        buffered = io.BufferedReader(self._raw)
        if buffered.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(name, "this is UTF-16: save it as UTF-8")
        self.stream = io.TextIOWrapper(buffered, encoding="utf-8-sig", errors="surrogateescape", newline="")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    @property
    def broken(self) -> str | None:
        """Why the stream broke off, once its end has been read."""
        return self._raw.broken

    def reject(self, row: int, reason: str, field: str | None = None) -> None:
        """Count a row in and set it aside."""
        self.quarantine.rows_in += 1
        self.quarantine.add(self.name, row, field, reason)

    def accept(self, row: int, data: Any) -> Iterator[Located]:
        """Count a row in, and let it pass unless something in it cannot be stored."""
        if not isinstance(data, dict):
            return self.reject(row, f"not an object: {type(data).__name__}")
        field, reason = flaw(data)
        if reason:
            return self.reject(row, reason, field)
        self.quarantine.rows_in += 1
        yield Located(self.name, row, data)


def flaw(value: Any, field: str | None = None) -> tuple[str | None, str | None]:
    """(field, reason) of the first thing in a row that no text file or table should hold, else (field, None)."""
    if isinstance(value, str):
        if "\0" in value:
            return field, "holds a NUL character"
        if not value.isascii() and re.search("[\ud800-\udfff]", value):
            return field, "not valid Unicode (bytes that are not UTF-8, or half of a surrogate pair)"
    elif isinstance(value, float) and value - value != 0:
        return field, "NaN and Infinity are no numbers"
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else ((None, v) for v in value)
        for key, item in items:
            found = flaw(item, field or key)
            if found[1]:
                return found
            if key is not None and flaw(key)[1]:
                return field or repr(key), "not valid Unicode in a name"
    return field, None


class _BadRow(ValueError):
    """Well-formed JSON that may not be a row."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [k for k, _ in pairs]
        raise _BadRow(f"duplicate key: {next(k for k in names if names.count(k) > 1)!r}")
    return out


def _no_constant(name: str) -> NoReturn:
    raise _BadRow(f"NaN and Infinity are no numbers: {name}")


_STRICT = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
_LENIENT = json.JSONDecoder(parse_int=str)  # only to find where a value that is no row ends


def read_json(file: TextFile) -> Iterator[Located]:
    """A JSON array of objects, or one object a line; which of the two is read off the text, not the name.

    Raises DataError with line and column for an array that is not JSON.
    """
    lines = iter(file.stream)
    head = _up_to_text(lines)
    first = head[-1].strip() if head else ""
    if first.startswith("["):
        is_array = not _is_json(first)
        if not is_array:  # a whole list on one line: the array, unless another line of JSON follows
            head += _up_to_text(lines)
            second = head[-1].strip()
            is_array = second in ("", first) or not _is_json(second)
        if is_array:
            yield from _array(file, "".join([*head, *lines]))
            return
    if first == "{":
        head += lines
        _refuse_one_object(file.name, "".join(head))
    yield from _json_lines(file, chain(head, lines))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _up_to_text(lines: Iterator[str]) -> list[str]:
    """Lines up to and with the next one that is not blank."""
    out: list[str] = []
    for line in lines:
        out.append(line)
        if line.strip():
            break
    return out


def _json_lines(file: TextFile, lines: Iterable[str]) -> Iterator[Located]:
    end = 1
    for number, line in enumerate(lines, 1):
        end = number + 1
        if not line.strip():
            continue
        try:
            data = _STRICT.decode(line.strip())
        except json.JSONDecodeError as e:
            if file.broken and not line.endswith("\n"):
                end = number  # the half line at the break is the break's own entry
            else:
                file.reject(number, f"not JSON: {e.msg} (column {e.colno})")
        except (ValueError, RecursionError) as e:
            file.reject(number, str(e) if isinstance(e, _BadRow) else f"not JSON: {e}")
        else:
            yield from file.accept(number, data)
    if file.broken:
        file.reject(end, f"{BROKEN_OFF}: {file.broken}")


def _array(file: TextFile, text: str) -> Iterator[Located]:
    at, row = _skip(text, text.index("[") + 1), 0
    closed = text.startswith("]", at)
    at += closed
    while not closed:
        row, start = row + 1, at
        try:
            data, at, reason = _element(text, start)
            if reason is None:
                yield from file.accept(row, data)
            else:
                file.reject(row, reason)
            at = _skip(text, at)
            closed = text.startswith("]", at)
            if not closed and not text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            at = _skip(text, at + 1)
        except (json.JSONDecodeError, RecursionError) as e:
            if file.broken:
                return file.reject(row if at == start else row + 1, f"{BROKEN_OFF}: {file.broken}")
            detail = f"{e.msg} at line {e.lineno}, column {e.colno}" if isinstance(e, json.JSONDecodeError) else str(e)
            raise DataError(file.name, f"the JSON array is broken: {detail}", row=row) from e
    if text[at:].strip():
        end = json.JSONDecodeError("", text, at)
        raise DataError(file.name, f"something follows the JSON array at line {end.lineno}, column {end.colno}")
    if file.broken:
        file.reject(row + 1, f"{BROKEN_OFF}: {file.broken}")


def _element(text: str, at: int) -> tuple[Any, int, str | None]:
    """(value, where it ends, why it is no row) of the JSON value that starts here."""
    try:
        return *_STRICT.raw_decode(text, at), None
    except json.JSONDecodeError:
        raise
    except ValueError as e:
        return *_LENIENT.raw_decode(text, at), str(e)


def _refuse_one_object(name: str, text: str) -> None:
    """A pretty-printed single object holds no rows, though one of its keys may."""
    try:
        keys = ", ".join(json.loads(text))
    except ValueError:
        return
    raise DataError(name, f"one JSON object (keys {keys}), not rows: give an array of objects or one object a line")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


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
            yield from file.accept(row, dict(zip(header, cells, strict=True)))
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
