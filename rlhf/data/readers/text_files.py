"""Text files open for reading, and what a row of any file must not hold.

Used by the readers. Real files are broken in places. A byte that is not UTF-8 costs only its own row. A gzip stream that ends too early
gives the rows before its end. Every row that is lost has an entry in the quarantine.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, Self

from rlhf.data.rows import Located, Quarantine
from rlhf.errors import DataError

BROKEN_OFF = "the gzip stream ends too early here, and what follows is lost"
_BUFFER = 1 << 18


class _Bytes(io.RawIOBase):
    """A file's bytes, unpacked if the file is gzipped. Where a gzip stream is broken, the bytes end without an error and `broken` says why."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.broken: str | None = None
        try:
            self._file: Any = gzip.GzipFile(path) if path.suffix == ".gz" else io.FileIO(path)
        except OSError as e:
            raise self._unreadable(e) from e
        self._read = getattr(self._file, "read1", self._file.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as e:
            self.broken, data = str(e), b""
        except OSError as e:
            raise self._unreadable(e) from e
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
        super().close()

    def _unreadable(self, error: OSError) -> DataError:
        return DataError(self.name, f"cannot be read: {error.strerror or error}")


class TextFile:
    """A text file open for reading. Bytes that are not UTF-8 become lone surrogates, and `flaw` finds those.

    Raises DataError for a file that cannot be read (when it is opened or later), and for UTF-16.
    """

    def __init__(self, path: Path, name: str, quarantine: Quarantine) -> None:
        self.name, self.quarantine = name, quarantine
        self._bytes = _Bytes(path, name)
        buffered = io.BufferedReader(self._bytes, _BUFFER)
        start = buffered.peek(3)[:3]
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            buffered.close()
            raise DataError(name, "this is UTF-16: save it as UTF-8")
        if start == b"\xef\xbb\xbf":
            buffered.read(3)
        self.stream = io.TextIOWrapper(buffered, encoding="utf-8", errors="surrogateescape", newline="")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    @property
    def broken(self) -> str | None:
        """Why the gzip stream ended too early, or None; known once its end has been read."""
        return self._bytes.broken

    def reject(self, row: int | None, reason: str, field: str | None = None) -> None:
        """Count a row as read and set it aside."""
        self.quarantine.rows_in += 1
        self.quarantine.add(self.name, row, field, reason)

    def accept(self, row: int, data: Any, *, group: str | None = None) -> Located | None:
        """Count a row as read, and return it unless it is no object or holds something that cannot be stored."""
        if isinstance(data, dict):
            return accept(self.name, row, data, self.quarantine, group)
        self.reject(row, f"not an object: {type(data).__name__}")
        return None


def accept(
    name: str, row: int, data: dict[str, Any], quarantine: Quarantine, group: str | None = None
) -> Located | None:
    """Count a row as read, and return it unless it holds something that cannot be stored: then it goes to the quarantine."""
    quarantine.rows_in += 1
    field, reason = flaw(data)
    if reason is None:
        return Located(name, row, data, group=group)
    quarantine.add(name, row, field, reason)
    return None


def flaw(row: dict[str, Any]) -> tuple[str | None, str | None]:
    """(field, reason) of the first thing in a row that cannot be stored, else (None, None)."""
    if not _is_plain("".join(row)):
        return repr(next(name for name in row if not _is_plain(name))), "not valid Unicode in a name, or a NUL"
    for field, value in row.items():
        kind = type(value)
        if kind is str:
            if _is_plain(value):
                continue
        elif kind is int or value is None or kind is bool or _is_plain_list(value):
            continue
        try:
            found = _flaw(value, field)
        except RecursionError:
            return field, "is nested too deeply"
        if found[1]:
            return found
    return None, None


def _is_plain_list(value: Any) -> bool:
    return type(value) is list and set(map(type, value)) == {str} and _is_plain("".join(value))


def _is_plain(text: str) -> bool:
    """Whether a text can be stored as it is. For nearly all texts the answer is quick."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _flaw(value: Any, field: str | None) -> tuple[str | None, str | None]:
    if isinstance(value, str):
        if "\0" in value:
            return field, "holds a NUL character"
        if not _is_plain(value):
            return field, "not valid Unicode (bytes that are not UTF-8, or half of a surrogate pair)"
    elif isinstance(value, float) and value - value != 0:
        return field, "NaN and Infinity are not numbers"
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else ((None, v) for v in value)
        for key, item in items:
            found = _flaw(item, field or key)
            if found[1]:
                return found
            if key is not None and _flaw(key, None)[1]:
                return field or repr(key), "not valid Unicode in a name, or a NUL"
    return field, None
