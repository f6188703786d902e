"""The measures of finished samples, as pure functions of numbers. Every estimate has its 95% interval.

Samples of one prompt are not independent of each other, nor are pairs of one prompt. So intervals count prompts, not samples.
Nothing here is random, and nothing needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = NormalDist().inv_cdf(0.975)
REPEATED = 4  # n-gram length of `repetition`: good prose repeats shorter ones


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval. `low` and `high` are None if there is only one prompt, which shows no spread."""

    value: float
    low: float | None
    high: float | None
    n: int

    def as_dict(self) -> dict[str, Any]:
        """For report.json."""
        return asdict(self)


def mean(values: ArrayLike) -> Estimate:
    """The mean over prompts with Student's t interval: values [P], or [P, n] for n samples of each prompt.

    For differences between two models it is the paired t interval: all models answer the same prompts with the same random
    numbers.
    """
    per_prompt = by_prompt(values)
    n, centre = len(per_prompt), float(per_prompt.mean())
    if n < 2:
        return Estimate(centre, None, None, n)
    half = t95(n - 1) * float(per_prompt.std(ddof=1)) / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half, n)


def share(outcomes: ArrayLike, *, independent: int | None = None) -> Estimate:
    """The mean of outcomes in [0, 1] with Wilson's score interval; [P] or [P, n].

    `independent` is the number of independent outcomes, if it is smaller than P. Why Wilson and not a bootstrap: at a share of 0
    or 1, a bootstrap's interval has no width, and Wilson's still shows how little n prompts prove. It needs no seed, and it keeps
    its coverage when n is small. It takes outcomes for coin flips. Ties (one half) vary less, so with ties it is a little too wide.
    """
    per_prompt = by_prompt(outcomes)
    if ((per_prompt < 0) | (per_prompt > 1)).any():
        raise ValueError("outcomes must lie in [0, 1]")
    p, n = float(per_prompt.mean()), independent or len(per_prompt)
    spread = Z95**2 / n
    centre = (p + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), n)


def outcomes(own: ArrayLike, other: ArrayLike) -> NDArray[np.float64]:
    """Which one scores higher, for each element: 1 is `own`, 0 is `other`, one half is a tie."""
    difference = np.asarray(own, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    return (np.sign(difference) + 1) / 2


def preference_accuracy(chosen: ArrayLike, rejected: ArrayLike, prompts: Sequence[Hashable]) -> Estimate:
    """How often the chosen completion has the higher value; a tie counts one half. All are [P], one entry for each pair.

    The values are a reward model's scores, implicit rewards, or lengths. Length is the baseline that a reward model must beat:
    "the longer completion is better". Pairs of one prompt share completions, so the interval counts distinct prompts.
    """
    return share(outcomes(chosen, rejected), independent=len(set(prompts)))


def lengths(values: ArrayLike) -> dict[str, Any]:
    """Tokens of each completion, [P] or [P, n]: mean with its interval, median, 95th percentile, maximum."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    median, p95 = np.quantile(flat, [0.5, 0.95])
    return {"mean": mean(values).as_dict(), "median": float(median), "p95": float(p95), "max": float(flat.max())}


def distinct(completions: Sequence[Sequence[int]], n: int) -> float | None:
    """Different n-grams / all n-grams, over all completions together (Li et al. 2016, https://arxiv.org/abs/1510.03055).

    It is low if a policy says the same thing to every prompt, which is the plainest sign of a hacked reward. It falls as there is
    more text, so compare models on the same prompts only. None if no completion has n tokens.
    """
    grams = [gram for ids in completions for gram in _ngrams(ids, n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(completions: Sequence[Sequence[int]]) -> float | None:
    """The share of a completion's 4-grams that occur earlier in it, averaged over completions: it shows loops."""
    shares = [1 - len(set(grams)) / len(grams) for ids in completions if (grams := _ngrams(ids, REPEATED))]
    return float(np.mean(shares)) if shares else None


def by_prompt(values: ArrayLike) -> NDArray[np.float64]:
    """[P] stays; [P, n] is averaged over each prompt's samples -> [P]. Raises ValueError for no values."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("nothing to measure")
    return array if array.ndim == 1 else array.mean(axis=1)


def t95(freedom: int) -> float:
    """The 97.5% quantile of Student's t: exact for 1 and 2 degrees of freedom, then Abramowitz and Stegun 26.7.5 (error < 0.5%).

    It is written out because rlhf does not require scipy.
    """
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, v = Z95, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def _ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
