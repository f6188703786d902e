"""Names for a step's rows that outlast changes elsewhere: the row's prompt, and how many rows before it have the same.

Under `journal`, which finds answers by them, and the steps, whose chance hangs on them. A row's place would not do: one row less in a source,
or one whose request failed in an earlier step, would give every later row another name, and each of its answers would be paid for again.

Memory: 24 bytes a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from rlhf.data.rows import Text, text_of

STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, so that equal prompts' names do not meet before 2**64 of them


class Names:
    """The rows' names, 16 hex digits each, from their prompts in order."""

    def __init__(self, prompts: Iterable[Text]) -> None:
        marks = np.fromiter(map(_mark, prompts), dtype=np.uint64)
        order = np.argsort(marks, kind="stable")
        sorted_marks = marks[order]
        places = np.arange(len(marks))
        begins = np.ones(len(marks), dtype=bool)
        begins[1:] = sorted_marks[1:] != sorted_marks[:-1]
        before = places - np.maximum.accumulate(np.where(begins, places, 0))  # rows of the same prompt
        self._names = np.empty_like(marks)
        self._names[order] = sorted_marks + before.astype(np.uint64) * STEP
        self._order = np.argsort(self._names, kind="stable")
        self._sorted = self._names[self._order]

    def of(self, position: int) -> str:
        """The name of the row at a position."""
        return f"{int(self._names[position]):016x}"

    def place(self, name: str) -> int | None:
        """Where the row of this name is; None where no row has it. Raises ValueError for what is no name."""
        number = np.uint64(int(name, 16))
        at = int(np.searchsorted(self._sorted, number))
        return int(self._order[at]) if at < len(self._sorted) and self._sorted[at] == number else None


def _mark(prompt: Text) -> int:
    text = text_of(prompt).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
