"""Text files open for reading, and what no row of theirs may hold.

Below `sources` and the readers. Real files are broken in places: a byte that is not UTF-8 spoils its own row only, and a gzip stream that breaks
off gives what came before the break. Nothing goes missing without an entry.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, Self

from rlhf.data.rows import Located, Quarantine
from rlhf.errors import DataError

BROKEN_OFF = "the gzip stream breaks off here, what follows is lost"
_BUFFER = 1 << 18


class _Bytes(io.RawIOBase):
    """A file's bytes, unpacked where it is gzipped; a gzip stream that breaks off ends here quietly, and says why in `broken`."""

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
    """A text file open for reading. Bytes that are not UTF-8 become lone surrogates, which `flaw` finds.

    Raises DataError for a file that cannot be read, on opening or later, and for UTF-16.
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
        """Why the stream broke off, once its end has been read."""
        return self._bytes.broken

    def reject(self, row: int | None, reason: str, field: str | None = None) -> None:
        """Count a row in and set it aside."""
        self.quarantine.rows_in += 1
        self.quarantine.add(self.name, row, field, reason)

    def accept(self, row: int, data: Any, *, group: str | None = None) -> Located | None:
        """Count a row in, and let it pass unless something in it cannot be stored."""
        if not isinstance(data, dict):
            self.reject(row, f"not an object: {type(data).__name__}")
            return None
        field, reason = flaw(data)
        if reason:
            self.reject(row, reason, field)
            return None
        self.quarantine.rows_in += 1
        return Located(self.name, row, data, group=group)


def flaw(row: dict[str, Any]) -> tuple[str | None, str | None]:
    """(field, reason) of the first thing in a row that no text file or table should hold, else (None, None)."""
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
    """Whether a text can be stored as it is; the quick answer for nearly all."""
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
        return field, "NaN and Infinity are no numbers"
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else ((None, v) for v in value)
        for key, item in items:
            found = _flaw(item, field or key)
            if found[1]:
                return found
            if key is not None and _flaw(key, None)[1]:
                return field or repr(key), "not valid Unicode in a name, or a NUL"
    return field, None
