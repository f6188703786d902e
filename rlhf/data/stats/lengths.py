"""How long the sides are, whether the longer answer is preferred, and which rows are too long for training.

If the preferred answers are longer, a reward model can be right by length alone. The length baseline says how often. The pairs are
preference rows, and every two completions of a ranking with different grades. Pairs of one ranking are not independent, so the
interval is too narrow for rankings.
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

ROW = "row"  # what is compared with max_length: the prompt and the longest completion


class SideLengths:
    """Lengths by side as exact counts. Memory depends on how many different lengths there are."""

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
        """{side: summary, and `longest`: the file:row of the longest}. `row` is the prompt and the longest completion."""
        return {name: {**(summary(n) or {}), "longest": self._longest[name][1]} for name, n in self._counts.items()}

    def over(self, limit: int) -> dict[str, Any]:
        """{limit, rows, share, longest, example}: the rows over `limit`."""
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
    """How often the longer of two answers is preferred."""

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
        """None if there is no pair.

        longer_wins        the share of pairs in which the longer answer is preferred, among pairs of different length, with its 95% Wilson
                           interval
        baseline_accuracy  how often "the longer is better" is right, over all pairs; a tie counts as half
        cohens_d           the difference of the mean logarithms of the lengths (preferred - other) over the pooled standard deviation
        histogram          the distribution of preferred - other
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
