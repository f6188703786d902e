"""Texts as one flat buffer: UTF-8 bytes end to end, and the offset of each text. The buffer is in memory or in a mapped file.

The dedup engines read it. Seven million Python strings would take gigabytes, and lie scattered in memory. Here a kernel reads bytes one
after the other, and `Texts.release` takes a mapped file out of memory again. `TextWriter` writes a stream of Arrow strings into such a
file. It cuts each text to the characters that will be compared.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlhf.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


class Texts:
    """N texts. `data` uint8 [bytes] and `offsets` int64 [N + 1] are read-only. `texts[i]` is text i as a str."""

    def __init__(self, data: NDArray[np.uint8], offsets: NDArray[np.int64], mapped: mmap.mmap | None = None) -> None:
        if data.dtype != np.uint8 or offsets.dtype != np.int64 or data.ndim != 1 or offsets.ndim != 1:
            raise ValueError(f"texts are uint8 and int64 arrays, not {data.dtype} and {offsets.dtype}")
        if not len(offsets) or offsets[0] != 0 or offsets[-1] > len(data) or np.any(np.diff(offsets) < 0):
            raise ValueError("offsets must rise from 0 to at most the length of data")
        self.data, self.offsets, self._mapped = data, offsets, mapped
        self.data.flags.writeable = self.offsets.flags.writeable = False

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Texts in memory. Lone surrogates, which are not valid UTF-8, are kept."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(e) for e in encoded], out=offsets[1:])
        return cls(np.frombuffer(bytearray(b"".join(encoded)), np.uint8), offsets)

    @classmethod
    def mapped(cls, path: str | Path, offsets: NDArray[np.int64]) -> Texts:
        """The texts of a file that `TextWriter` wrote. The file may be deleted when it is mapped."""
        if not offsets[-1]:  # an empty file cannot be mapped
            return cls(np.zeros(0, np.uint8), offsets)
        with Path(path).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(np.frombuffer(mapped, np.uint8), offsets, mapped)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        return self.bytes(index).decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def bytes(self, index: int) -> bytes:
        """Text `index` as UTF-8."""
        if not 0 <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def release(self) -> None:
        """Give the mapped file's pages back to the system. Before that, they count as this process's memory."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)


class TextWriter:
    """Writes texts to a file at `path`, each cut to its first `max_chars` characters (None: whole).

    The file holds only the bytes. The offsets, 8 bytes for each text, stay in memory. The caller deletes the file.
    """

    def __init__(self, path: str | Path, max_chars: int | None) -> None:
        self.path, self.max_chars = Path(path), max_chars
        self._file = self.path.open("wb")
        self._offsets: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self._end, self._rows = 0, 0

    def write(self, texts: pa.Array | pa.ChunkedArray) -> None:
        """Append an Arrow array of strings. Raises DataError for a null or invalid UTF-8, with its row in the stream."""
        for chunk in getattr(texts, "chunks", [texts]):
            self._write(chunk)

    def close(self) -> Texts:
        """Finish the file and map it."""
        self._file.close()
        offsets = np.concatenate(self._offsets)
        return Texts.mapped(self.path, offsets)

    def __enter__(self) -> TextWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, texts: pa.Array) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        if not len(texts):
            return
        texts = texts.cast(pa.large_string())
        self._check(texts)
        if self.max_chars is not None and pc.max(pc.binary_length(texts)).as_py() > self.max_chars:
            texts = pc.utf8_slice_codeunits(texts, 0, self.max_chars)
        _, offset_buffer, data = texts.buffers()
        offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        if data is not None:
            self._file.write(memoryview(data)[offsets[0] : offsets[-1]])
        self._offsets.append(offsets[1:] - offsets[0] + self._end)
        self._end = int(self._offsets[-1][-1])
        self._rows += len(texts)

    def _check(self, texts: Any) -> None:
        import pyarrow as pa

        if texts.null_count:
            row = self._rows + int(np.flatnonzero(texts.is_null().to_numpy(zero_copy_only=False))[0]) + 1
            raise DataError(str(self.path), "there is a null in place of a text", row=row)
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid as e:
            raise DataError(str(self.path), f"after row {self._rows}: text that is not valid UTF-8 ({e})") from e
