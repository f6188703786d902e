"""What a dataset says more than once: prompts, rows, answers, contradictory pairs; and prompts on both sides of a split.

Texts are not kept: each row leaves 64-bit hashes (Python's SipHash, keyed anew in every process, so that no data can be made
to collide) in arrays of 8 bytes an entry, and its place in runs of consecutive rows. Among 10 million rows two unequal
texts have one hash with a probability of 3e-6. Near-duplicates are the business of the dedup step.
"""

from __future__ import annotations

import unicodedata
from array import array
from bisect import bisect_right
from typing import Any

import numpy as np
import numpy.typing as npt

from rlhf.data.rows import Located, completions_of, text_of
from rlhf.data.stats.chunk import Chunk

SHARED_FROM = 5  # different prompts from which on an answer counts as shared: fewer can be chance among short answers
SHOWN = 5  # answers and leaks given as examples
FREQUENT = 1024  # excerpts kept: any answer that makes up more than 1/1024 of all is among them
EXCERPT = 80  # characters
LABELS = ("ranking", "scores", "label", "margin")

_SPACES = "\n\r\t\xa0\u3000"

Hashes = npt.NDArray[np.int64]


def normalised(prompt: str) -> str:
    """A prompt without what does not make it another: case, kind and amount of white space, decomposed letters."""
    text = prompt.lower() if prompt.isascii() else unicodedata.normalize("NFC", prompt).casefold()
    for space in _SPACES:  # replacing is three times as fast as splitting and joining
        text = text.replace(space, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    return text.strip()


class RowNames:
    """`file:row` of the i-th row, as runs of consecutive rows of one file."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._runs: list[tuple[str, int]] = []
        self._next: tuple[str, int] | None = None
        self.count = 0

    def add(self, row: Located) -> None:
        if (row.file, row.row) != self._next:
            self._starts.append(self.count)
            self._runs.append((row.file, row.row))
        self._next = (row.file, row.row + 1)
        self.count += 1

    def __getitem__(self, index: int) -> str:
        run = bisect_right(self._starts, index) - 1
        file, first = self._runs[run]
        return f"{file}:{first + index - self._starts[run]}"


class Frequent:
    """Excerpts of the most frequent texts, in bounded memory (Misra and Gries 1982)."""

    def __init__(self, size: int = FREQUENT) -> None:
        self._size = size
        self._kept: dict[int, tuple[int, str]] = {}

    def add(self, key: int, text: str) -> None:
        if (known := self._kept.get(key)) is not None:
            self._kept[key] = (known[0] + 1, known[1])
        elif len(self._kept) < self._size:
            self._kept[key] = (1, text[:EXCERPT])
        else:
            self._kept = {k: (n - 1, t) for k, (n, t) in self._kept.items() if n > 1}

    def get(self, key: int) -> str | None:
        return self._kept[key][1] if key in self._kept else None


class Repeats:
    """Hash columns of one split."""

    def __init__(self) -> None:
        self.places = RowNames()
        self._prompt, self._normal, self._row = array("q"), array("q"), array("q")
        self._pair, self._pair_at = array("q"), array("q")
        self._answer, self._answer_at = array("q"), array("q")
        self._excerpts = Frequent()

    def add(self, chunk: Chunk) -> None:
        index = self.places.count
        answers_at: list[int] = []
        flat = [answer for answers in chunk.completions for answer in answers]
        hashes = list(map(hash, flat))
        own = iter(hashes)
        for i, (row, kind, prompt, answers) in enumerate(
            zip(chunk.rows, chunk.kinds, chunk.prompts, chunk.completions, strict=True), index
        ):
            data = row.data
            exact = [next(own) for _ in answers]
            answers_at += [i] * len(answers)
            whole = hash(prompt)
            if not isinstance(data["prompt"], str):  # the words alone are not the row: roles and turns are part of it
                whole, exact = hash(text_of(data["prompt"])), [hash(text_of(c)) for c in completions_of(data)]
            self.places.add(row)
            self._prompt.append(whole)
            self._row.append(hash((whole, *exact, *(f"{k} {data[k]}" for k in LABELS if k in data))))
            if kind == "preference":
                first, second = exact
                key = hash((whole, first, second) if first < second else (whole, second, first))
                self._pair.append((key & ~1) | (first < second))
                self._pair_at.append(i)
        self._normal.extend(map(hash, map(normalised, chunk.prompts)))
        self._answer.extend(hashes)
        self._answer_at.extend(answers_at)
        for key, answer in zip(hashes, flat, strict=True):
            self._excerpts.add(key, answer)

    def report(self) -> dict[str, Any]:
        """{prompts, rows: repeats; contradictory: pairs preferred both ways; shared_answers: answers of many prompts}."""
        return {
            "prompts": self._repeated(self._prompt),
            "rows": self._repeated(self._row),
            "contradictory": self._contradictory(),
            "shared_answers": self._shared(),
        }

    def _repeated(self, column: array[int]) -> dict[str, Any]:
        """{distinct, repeats: rows beyond the first of their like, largest, example: a row and its repeat}."""
        if not column:
            return {"distinct": 0, "repeats": 0, "largest": 0, "example": None}
        hashes = np.frombuffer(column, dtype=np.int64)
        values, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        example = None
        if len(values) < len(hashes):
            again = np.ones(len(hashes), dtype=bool)
            again[first] = False
            second = int(np.flatnonzero(again)[0])
            earlier = int(first[np.searchsorted(values, hashes[second])])
            example = [self.places[earlier], self.places[second]]
        return {
            "distinct": len(values),
            "repeats": len(hashes) - len(values),
            "largest": int(counts.max()),
            "example": example,
        }

    def _contradictory(self) -> dict[str, Any]:
        """{pairs, rows, example}: the same two answers of the same prompt, each preferred to the other once."""
        if not self._pair:
            return {"pairs": 0, "rows": 0, "example": None}
        hashes = np.frombuffer(self._pair, dtype=np.int64)
        ways = np.unique(hashes) >> 1
        both = ways[1:][ways[1:] == ways[:-1]]
        if not len(both):
            return {"pairs": 0, "rows": 0, "example": None}
        rows = np.flatnonzero(np.isin(hashes >> 1, both))
        other = rows[(hashes[rows] ^ hashes[rows[0]]) == 1][0]  # the same pair the other way round
        example = [self.places[self._pair_at[int(i)]] for i in (rows[0], other)]
        return {"pairs": len(both), "rows": len(rows), "example": example}

    def _shared(self) -> dict[str, Any]:
        """{completions, share, most}: completions whose very text answers `SHARED_FROM` different prompts or more."""
        if not self._answer:
            return {"completions": 0, "share": 0.0, "most": []}
        answers = np.frombuffer(self._answer, dtype=np.int64)
        at = np.frombuffer(self._answer_at, dtype=np.int64)
        prompts = np.frombuffer(self._normal, dtype=np.int64)[at]
        order = np.lexsort((prompts, answers))
        a, p = answers[order], prompts[order]
        new_answer = np.r_[True, a[1:] != a[:-1]]
        starts = np.flatnonzero(new_answer)
        different = np.add.reduceat((new_answer | np.r_[True, p[1:] != p[:-1]]).astype(np.int64), starts)
        counts = np.diff(np.r_[starts, len(a)])
        shared = different >= SHARED_FROM
        most = np.flatnonzero(shared)[np.argsort(-different[shared], kind="stable")][:SHOWN]
        return {
            "completions": int(counts[shared].sum()),
            "share": float(counts[shared].sum() / len(a)),
            "most": [
                {
                    "prompts": int(different[i]),
                    "completions": int(counts[i]),
                    "excerpt": self._excerpts.get(int(a[starts[i]])),
                    "example": self.places[int(at[order[starts[i] : starts[i] + counts[i]]].min())],
                }
                for i in most
            ],
        }

    @property
    def normal(self) -> Hashes:
        """The hashes of the normalised prompts, in row order."""
        return np.frombuffer(self._normal, dtype=np.int64) if self._normal else np.zeros(0, dtype=np.int64)


def leakage(a: Repeats, b: Repeats) -> dict[str, Any]:
    """{prompts, rows, share, examples}: normalised prompts that `b` shares with `a`, and how many of b's rows have one."""
    left, first = np.unique(a.normal, return_index=True)
    rows = np.flatnonzero(np.isin(b.normal, left))
    hashes = b.normal[rows]
    examples = []
    for row, value in list(zip(rows.tolist(), hashes.tolist(), strict=True))[:SHOWN]:
        examples.append([a.places[int(first[np.searchsorted(left, value)])], b.places[row]])
    return {
        "prompts": len(np.unique(hashes)),
        "rows": len(rows),
        "share": len(rows) / max(len(b.normal), 1),
        "examples": examples,
    }
