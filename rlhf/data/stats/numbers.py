"""Exact distributions, intervals and effect sizes from counts. So a pass over millions of rows keeps no row in memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 40  # of a histogram in a report
Z95 = 1.959963984540054  # the normal distribution's 97.5% point


def percentile(counts: Mapping[int, int], share: float) -> int:
    """The smallest value v so that at least `share` of all values are <= v (nearest rank; numpy's `inverted_cdf`)."""
    total, seen = sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= share * total - 1e-9 * total:
            return value
    raise ValueError("a percentile of nothing")


def summary(counts: Mapping[int, int]) -> dict[str, Any] | None:
    """{count, mean, p50, p95, p99, max, histogram} of integers given by their counts; None if there are none."""
    total = sum(counts.values())
    if not total:
        return None
    return {
        "count": total,
        "mean": sum(value * n for value, n in counts.items()) / total,
        "p50": percentile(counts, 0.5),
        "p95": percentile(counts, 0.95),
        "p99": percentile(counts, 0.99),
        "max": max(counts),
        "histogram": histogram(counts),
    }


def histogram(counts: Mapping[int, int], tail: float = 0.005) -> dict[str, list[int]]:
    """{edges, counts}: bins of equal whole width, `edges[i] <= value < edges[i + 1]`. The first and the last bin also hold what is outside.

    The edges leave out the share `tail` of the values at each end, so one outlier does not push all other values into one bin.
    """
    low, high = percentile(counts, tail), percentile(counts, 1 - tail)
    width = max(1, math.ceil((high + 1 - low) / BINS))
    low -= low % width  # so that 0 is an edge if there are values below and above it
    edges = list(range(low, high + 1 + width, width))
    bins = [0] * (len(edges) - 1)
    for value, n in counts.items():
        bins[min(max((value - low) // width, 0), len(bins) - 1)] += n
    return {"edges": edges, "counts": bins}


def wilson(hits: int, total: int) -> dict[str, float] | None:
    """{value, low, high}: a share with its 95% score interval (Wilson 1927); None if total is 0."""
    if total == 0:
        return None
    p, z2 = hits / total, Z95**2
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return {"value": p, "low": max(0.0, centre - half), "high": min(1.0, centre + half)}


class Moments:
    """Count, mean and variance of numbers that come in parts (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.n, self.mean, self._m2 = 0, 0.0, 0.0

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Merge in the moments of a part."""
        if not (n := len(values)):
            return
        mean = float(values.mean())
        delta, total = mean - self.mean, self.n + n
        self._m2 += float(((values - mean) ** 2).sum()) + delta**2 * self.n * n / total
        self.mean += delta * n / total
        self.n = total

    @property
    def variance(self) -> float:
        """The sample variance (n - 1)."""
        return self._m2 / (self.n - 1) if self.n > 1 else 0.0


def cohens_d(a: Moments, b: Moments) -> float | None:
    """(mean a - mean b) / pooled standard deviation (Cohen 1988); None if the values do not vary."""
    if a.n + b.n < 3:
        return None
    pooled = math.sqrt(((a.n - 1) * a.variance + (b.n - 1) * b.variance) / (a.n + b.n - 2))
    return (a.mean - b.mean) / pooled if pooled > 0 else None


def shares(counts: Counter[str]) -> dict[str, dict[str, float]]:
    """{name: {count, share}}, the most frequent first, equal counts by name."""
    total = counts.total()
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {name: {"count": n, "share": n / total} for name, n in ordered}
