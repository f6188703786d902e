"""Names for a step's rows. A name depends on the row's prompt, and on how many earlier rows have the same prompt.

`journal` finds answers by these names, and the steps' random choices depend on them. A row's position would not do. If a source
loses a row, or a row fails in an earlier step, every later row gets another position; all its answers would be paid for again.

Memory: 24 bytes for each row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from rlhf.data.rows import Text, text_of

STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, so that the names of 2**64 equal prompts all differ


class Names:
    """The names of all rows, 16 hex digits each, from their prompts in order."""

    def __init__(self, prompts: Iterable[Text]) -> None:
        marks = np.fromiter(map(_mark, prompts), dtype=np.uint64)
        order = np.argsort(marks, kind="stable")
        sorted_marks = marks[order]
        positions = np.arange(len(marks))
        begins = np.ones(len(marks), dtype=bool)
        begins[1:] = sorted_marks[1:] != sorted_marks[:-1]
        before = positions - np.maximum.accumulate(np.where(begins, positions, 0))  # earlier rows of the same prompt
        self._names = np.empty_like(marks)
        self._names[order] = sorted_marks + before.astype(np.uint64) * STEP
        self._order = np.argsort(self._names, kind="stable")
        self._sorted = self._names[self._order]

    def of(self, position: int) -> str:
        """The name of the row at a position."""
        return f"{int(self._names[position]):016x}"

    def position(self, name: str) -> int | None:
        """The position of the row with this name; None if no row has it. Raises ValueError for a text that is not a name."""
        number = np.uint64(int(name, 16))
        at = int(np.searchsorted(self._sorted, number))
        return int(self._order[at]) if at < len(self._sorted) and self._sorted[at] == number else None


def _mark(prompt: Text) -> int:
    text = text_of(prompt).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
