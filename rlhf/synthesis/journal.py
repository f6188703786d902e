"""The journal: every answer is on disk before it is used, so a run that was killed does not pay for an answer twice.

    output_dir/journal/step-2.jsonl    line 1 is a header; then comes one JSON line for each answer, in order of arrival

`asking` writes it as answers arrive; the steps read it when they make rows. A line is appended in one write, and synced to the
disk after at most one second or 32 answers. `kill -9` loses only what was not yet written; a power cut loses at most that second.
When the file is opened, a last line that is not whole is cut off. A damaged line is counted and its request is asked again. Each
line ends with a checksum over the line and the header's digest. So a changed byte is found, and if the header is lost, no answer
is lost with it.

An answer is found by its key `name/slot/digest`: its row's name (see `naming`), which of the row's requests it was, and a digest
of the question. So a row that changed is asked again, and an unchanged row is not, wherever it stands now. The header holds what
all answers depend on (step, engine, seed). If that changes, the old file is kept aside under its digest. It is used again when the
change is undone, or when the step gets another number in the recipe.

Memory: eight bytes for each possible answer. The texts stay on disk.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from rlhf.errors import RlhfError
from rlhf.generation.text_engine import Answer

VERSION = 2
SYNC_SECONDS, SYNC_ANSWERS = 1.0, 32
READ = 1 << 16
SUM = b', "sum": "'


def digest_of(value: Any) -> str:
    """16 hex digits that name a JSON value."""
    text = json.dumps(value, ensure_ascii=True, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Journal:
    """One step's answers. A context manager; one process at a time may open it.

    `header`: what the answers depend on. `say`: called with a message when an old journal is kept aside or a line is damaged.
    `position_of`: the position of the row with a name; None if there is no such row now (its answers stay on disk).
    `kin`: a pattern of files in the folder that may hold this step's answers under another number.
    """

    def __init__(
        self,
        path: Path,
        header: dict[str, Any],
        say: Callable[[str], None] = lambda _: None,
        *,
        position_of: Callable[[str], int | None] = int,
        kin: str | None = None,
    ) -> None:
        self.path, self._say, self._position_of, self._kin = path, say, position_of, kin
        self._header = {"journal": VERSION, "digest": digest_of(header), **header}
        self._digest = str(self._header["digest"])
        self.kept = self.damaged = 0  # answers found when it was opened, and lines that could not be read
        self._offsets: dict[str, array[int]] = {}  # by slot, by position; 0 if there is no answer
        self._lock = self._file = -1
        self._end = self._unsynced = 0
        self._synced_at = 0.0

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._choose_file()
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            self._load()
        except OSError as error:
            self.close()
            raise self._failed(error) from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Sync, and let another process open the file."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                if descriptor == self._file:
                    os.fsync(descriptor)
                os.close(descriptor)
        self._file = self._lock = -1

    def add(self, key: str, answer: Answer) -> None:
        """Append an answer. Raises RlhfError when the disk is full; all earlier answers stay."""
        line = _line(key, answer, self._digest)
        try:
            written = os.pwrite(self._file, line, self._end)
            if written < len(line):  # the disk is full; the next write says so
                written += os.pwrite(self._file, line[written:], self._end + written)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._index(key, self._end)
            self._end += len(line)
            self._unsynced += 1
            if self._unsynced >= SYNC_ANSWERS or time.monotonic() - self._synced_at > SYNC_SECONDS:
                self.sync()
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise self._failed(error) from error

    def sync(self) -> None:
        """Write all answers so far to the disk."""
        if self._unsynced:
            os.fsync(self._file)
        self._unsynced, self._synced_at = 0, time.monotonic()

    def get(self, position: int, slot: str, key: str | None = None) -> Answer | None:
        """The newest answer in a row's slot. With `key`, only an answer to exactly that request."""
        offsets = self._offsets.get(slot)
        if offsets is None or position >= len(offsets) or not offsets[position]:
            return None
        there, answer = _parsed(self._read(offsets[position]))
        return answer if key is None or there == key else None

    def _read(self, offset: int) -> bytes:
        parts: list[bytes] = []
        while (
            True
        ):  # pread has no shared position: the engine may ask for requests, which reads old answers, in any thread
            part = os.pread(self._file, READ, offset)
            end = part.find(b"\n")
            if end >= 0 or not part:
                return b"".join([*parts, part[: end if end >= 0 else 0]])
            parts.append(part)
            offset += len(part)

    def _index(self, key: str, offset: int) -> bool:
        """Remember where the answer is; False if its row is not among the rows now."""
        name, slot, _ = key.split("/", 2)
        position = self._position_of(name)
        if position is None:
            return False
        offsets = self._offsets.setdefault(slot, array("q"))
        if (missing := position + 1 - len(offsets)) > 0:
            offsets.extend([0] * missing)
        offsets[position] = offset
        return True

    def _take_lock(self) -> None:
        self._lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RlhfError(f"{self.path}: another run is writing this journal; wait for it, or stop it") from None

    def _choose_file(self) -> None:
        """Put the file of this header at `path`: keep another header's file aside, and take our own back."""
        there = _digest_in(self.path)
        if there == self._digest:
            return
        if there is not None:
            aside = _aside(self.path, there)
            self.path.rename(aside)
            self._say(f"{self.path}: made for other settings of the step, its engine or the seed; kept as {aside.name}")
        elif self.path.exists() and self.path.stat().st_size:
            self._rescue()
            return
        others = sorted(self.path.parent.glob(self._kin)) if self._kin else []
        for mine in (_aside(self.path, self._digest), *others):
            if _digest_in(mine) == self._digest:
                mine.rename(self.path)
                self._say(f"{self.path}: goes on from {mine.name}, made for the same settings")
                return

    def _rescue(self) -> None:
        """Copy our answers out of a file whose header cannot be read, and keep that file aside."""
        aside, new, whole = _aside(self.path, "unreadable"), self.path.with_suffix(".rescued"), 0
        with new.open("wb") as file:
            file.write(self._first_line())
            for _, line in _lines(self.path):
                if _is_whole(line, self._digest):
                    file.write(line)
                    whole += 1
            file.flush()
            os.fsync(file.fileno())
        self.path.rename(aside)
        new.rename(self.path)
        self._say(f"{self.path}: its first line cannot be read; kept as {aside.name}; {whole} of its answers are used")

    def _load(self) -> None:
        """Index the answers, and cut off a last line that is not whole. Failed requests are asked again."""
        for offset, line in _lines(self.path):
            if not line.endswith(b"\n"):
                break
            if self._end:
                if _is_whole(line, self._digest):
                    key, answer = _parsed(line)
                    if answer.error is None:
                        self.kept += self._index(key, offset)
                else:
                    self.damaged += 1
            self._end = offset + len(line)
        os.ftruncate(self._file, self._end)
        if not self._end:
            line = self._first_line()
            if os.pwrite(self._file, line, 0) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._end = len(line)
            self._unsynced = 1
        self.sync()
        if self.damaged:
            self._say(f"{self.path}: {self.damaged} damaged lines are left out, and asked again")

    def _first_line(self) -> bytes:
        return json.dumps(self._header, ensure_ascii=False).encode() + b"\n"

    def _failed(self, error: OSError) -> RlhfError:
        kept = sum(1 for offsets in self._offsets.values() for offset in offsets if offset)
        remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "make it writable"
        return RlhfError(
            f"{self.path}: cannot be written: {error.strerror}; the {kept} answers so far are kept: "
            f"{remedy}, and run the same command again to continue"
        )


def _line(key: str, answer: Answer, digest: str) -> bytes:
    fields = {"key": key, **{name: getattr(answer, name) for name in Answer.__dataclass_fields__}}
    fields["texts"] = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in answer.texts]
    body = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")[:-1]
    return body + SUM + _sum(body, digest) + b'"}\n'


def _parsed(line: bytes) -> tuple[str, Answer]:
    """A whole line's key and answer."""
    fields = json.loads(line)
    del fields["sum"]
    return fields.pop("key"), Answer(**fields)


def _is_whole(line: bytes, digest: str) -> bool:
    """Whether a line is unchanged since it was written, under a header of this digest."""
    body, _, rest = line.rpartition(SUM)
    return rest == _sum(body, digest) + b'"}\n'


def _sum(body: bytes, digest: str) -> bytes:
    return hashlib.blake2b(body, key=digest.encode(), digest_size=8).hexdigest().encode()


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with path.open("rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


def _digest_in(path: Path) -> str | None:
    """The digest in a journal's header; None if there is no file, or no header that can be read."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline())
        return str(header["digest"]) if header["journal"] == VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _aside(path: Path, name: str) -> Path:
    """Where a journal is kept aside. Only a journal with the same digest may be replaced."""
    aside = path.with_name(f"{path.stem}.{name}{path.suffix}")
    number = 2
    while aside.exists() and name == "unreadable":
        aside = path.with_name(f"{path.stem}.{name}-{number}{path.suffix}")
        number += 1
    return aside
