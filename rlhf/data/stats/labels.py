"""What the labels say: which index is the best, how far apart scores are, how many ties there are, how many labels are true."""

from __future__ import annotations

from array import array
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from rlhf.data.rows import grades_of, text_of
from rlhf.data.stats.chunk import Chunk, Tally
from rlhf.data.stats.numbers import BINS, shares, wilson


def _alike(a: str, b: str) -> bool:
    """Whether two texts differ only in case and white space. The first letter decides most cases."""
    return a.strip()[:1].casefold()[:1] == b.strip()[:1].casefold()[:1] and _bare(a) == _bare(b)


def _bare(text: str) -> str:
    return " ".join(text.casefold().split())


class Labels:
    """The best indices of rankings, the margins and the unpaired labels of one split. A margin takes 4 bytes of memory."""

    def __init__(self) -> None:
        self._best: dict[int, Counter[int]] = {}
        self._rankings = self._with_ties = self._best_tied = 0
        self._equal_texts, self._nearly_identical = Tally(), Tally()
        self._margins = array("f")
        self._labels: Counter[str] = Counter()

    def add(self, chunk: Chunk) -> None:
        for row, kind, texts in zip(chunk.rows, chunk.kinds, chunk.completions, strict=True):
            if kind == "ranking":
                self._ranking(grades_of(row.data), "scores" in row.data)
                if len({text_of(c) for c in row.data["completions"]}) < len(texts):
                    self._equal_texts.add(row)
            elif kind == "preference":
                if row.data.get("margin") is not None:
                    self._margins.append(row.data["margin"])
                if _alike(texts[0], texts[1]):
                    self._nearly_identical.add(row)
            if row.data.get("label") is not None:
                self._labels[str(row.data["label"]).lower()] += 1

    def _ranking(self, grades: list[float], scored: bool) -> None:
        self._rankings += 1
        ordered = sorted(grades, reverse=True)
        self._with_ties += any(a == b for a, b in pairwise(ordered))
        if scored:
            self._margins.extend(a - b for a, b in pairwise(ordered))
        if ordered[0] == ordered[1]:
            self._best_tied += 1
        else:
            self._best.setdefault(len(grades), Counter())[grades.index(ordered[0])] += 1

    def report(self) -> dict[str, Any]:
        """{rankings, margins, unpaired, nearly_identical}. What the split does not have is None or 0."""
        return {
            "rankings": self._rankings_report(),
            "margins": self._margins_report(),
            "unpaired": shares(self._labels) if self._labels else None,
            "nearly_identical": self._nearly_identical.report(),
        }

    def _rankings_report(self) -> dict[str, Any] | None:
        """How often completion i (from 0) is the best, for each number of completions. Ties for the best are counted apart."""
        if not self._rankings:
            return None
        best = {
            str(n): [{"index": i, "count": c[i], "share": wilson(c[i], c.total())} for i in range(n)]
            for n, c in sorted(self._best.items())
        }
        return {
            "count": self._rankings,
            "best": best,
            "best_tied": self._best_tied,
            "with_ties": self._with_ties,
            "equal_texts": self._equal_texts.report(),
        }

    def _margins_report(self) -> dict[str, Any] | None:
        """The margins of preference rows, and the score differences between neighbours of a scored ranking."""
        if not self._margins:
            return None
        values = np.frombuffer(self._margins, dtype=np.float32).astype(np.float64)
        p50, p95 = np.percentile(values, [50, 95], method="inverted_cdf")
        top = float(np.percentile(values, 99.5, method="inverted_cdf")) or float(values.max()) or 1.0
        counts, edges = np.histogram(np.minimum(values, top), bins=BINS, range=(0.0, top))
        return {
            "count": len(values),
            "zero": int((values == 0).sum()),
            "mean": float(values.mean()),
            "p50": float(p50),
            "p95": float(p95),
            "max": float(values.max()),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        }
