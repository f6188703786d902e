"""How long the sides are, whether the longer answer wins, and which rows are too long for training.

A reward model can score well by length alone where preferred answers are the longer ones; the length baseline says how
well. Pairs of preference rows are compared, and of a ranking every two completions of different grade; pairs of one ranking
are not independent, so there the interval is too narrow.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from operator import sub
from typing import Any

import numpy as np

from rlhf.data.rows import grades_of
from rlhf.data.stats.chunk import Chunk, Tally, side
from rlhf.data.stats.numbers import Moments, cohens_d, histogram, summary, wilson

ROW = "row"  # the side that max_length is about: the prompt and the longest completion


class SideLengths:
    """Lengths by side as exact counts; bounded by the number of different lengths."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[int]] = {}
        self._longest: dict[str, tuple[int, str]] = {}
        self.refused = Tally()

    def add(self, chunk: Chunk) -> None:
        found: dict[str, list[tuple[int, int]]] = {}  # by side: (length, index of the row)
        for i, (kind, lengths) in enumerate(zip(chunk.kinds, chunk.lengths, strict=True)):
            if lengths is None:
                self.refused.add(chunk.rows[i])
                continue
            prompt, completions = lengths
            found.setdefault("prompt", []).append((prompt, i))
            for place, length in enumerate(completions):
                found.setdefault(side(kind, place), []).append((length, i))
            found.setdefault(ROW, []).append((prompt + max(completions, default=0), i))
        for name, pairs in found.items():
            self._counts.setdefault(name, Counter()).update(length for length, _ in pairs)
            longest, i = max(pairs, key=lambda pair: (pair[0], -pair[1]))
            if longest > self._longest.get(name, (-1, ""))[0]:
                self._longest[name] = (longest, str(chunk.rows[i]))

    def report(self) -> dict[str, Any]:
        """{side: summary + longest: file:row}; `row` is prompt + longest completion, what max_length is compared with."""
        return {name: {**(summary(n) or {}), "longest": self._longest[name][1]} for name, n in self._counts.items()}

    def over(self, limit: int) -> dict[str, Any]:
        """{limit, rows, share, longest, example} of the rows over `limit`."""
        counts = self._counts.get(ROW, Counter())
        rows = sum(n for length, n in counts.items() if length > limit)
        longest, example = self._longest.get(ROW, (0, ""))
        return {
            "limit": limit,
            "rows": rows,
            "share": rows / max(counts.total(), 1),
            "longest": longest,
            "example": example if rows else None,
        }


class LengthBias:
    """How often the longer of two answers is the preferred one."""

    def __init__(self) -> None:
        self._differences: Counter[int] = Counter()
        self._log_better, self._log_worse = Moments(), Moments()

    def add(self, chunk: Chunk) -> None:
        better: list[int] = []
        worse: list[int] = []
        for row, kind, lengths in zip(chunk.rows, chunk.kinds, chunk.lengths, strict=True):
            if lengths is None:
                continue
            sizes = lengths[1]
            if kind == "preference":
                better.append(sizes[0])
                worse.append(sizes[1])
            elif kind == "ranking":
                order = sorted(zip(grades_of(row.data), sizes, strict=True), key=lambda pair: -pair[0])
                pairs = [(a, b) for (g, a), (h, b) in combinations(order, 2) if g > h]
                better += [a for a, _ in pairs]
                worse += [b for _, b in pairs]
        self._differences.update(map(sub, better, worse))
        self._log_better.add(np.log(np.maximum(better, 1)))
        self._log_worse.add(np.log(np.maximum(worse, 1)))

    def report(self) -> dict[str, Any] | None:
        """None without a pair.

        `longer_wins` is the share among pairs of different length, with its 95% Wilson interval; `baseline_accuracy` that of
        "the longer is better" over all pairs, a tie half right; `cohens_d` of the logarithm of the length, preferred less
        other, over the pooled standard deviation; `difference` the distribution of preferred - other.
        """
        total = self._differences.total()
        if not total:
            return None
        longer = sum(n for d, n in self._differences.items() if d > 0)
        ties = self._differences[0]
        return {
            "pairs": total,
            "ties": ties,
            "longer_wins": wilson(longer, total - ties),
            "baseline_accuracy": (longer + ties / 2) / total,
            "cohens_d": cohens_d(self._log_better, self._log_worse),
            "mean_difference": sum(d * n for d, n in self._differences.items()) / total,
            "histogram": histogram(self._differences),
        }
