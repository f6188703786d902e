"""How many bands of how many rows: the plan of a locality-sensitive hash for one similarity threshold.

A sketch has bands x rows values; two texts are candidates when all rows of any band agree. With Jaccard similarity s each
value agrees with probability s, so a pair is found with 1 - (1 - s^rows)^bands (Leskovec, Rajaraman, Ullman: Mining of Massive
Datasets, 3.4.2). The reference recipe splits its 256 values so that false candidates and misses weigh the same: 17 bands
of 15 at 0.8, which find a pair at exactly 0.8 in 46% of cases. Here every candidate is confirmed, so a false one only
costs time: the plan finds a pair at the threshold with probability FOUND, at the least expected work.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from rlhf.errors import RecipeError

FOUND = 0.999

# The work of one text, in units of one sketch value (a few ns): a band's lookup and insertion; confirming a candidate; and how
# many strangers a text meets, at which similarity. Round numbers of the right size: they only choose among plans that all find.
_LOOKUP, _CONFIRM, _STRANGERS, _STRANGE = 10.0, 1000.0, 1e6, 0.04


class Bands(NamedTuple):
    """`number` bands of `rows` sketch values each."""

    number: int
    rows: int

    @property
    def bins(self) -> int:
        """Values of the sketch."""
        return self.number * self.rows

    def found(self, similarity: float) -> float:
        """The probability that a pair of this Jaccard similarity becomes a candidate."""
        return 1.0 - (1.0 - similarity**self.rows) ** self.number


def choose_bands(threshold: float, num_perm: int) -> Bands:
    """The cheapest plan with at most `num_perm` values that finds a pair at `threshold` with probability FOUND.

    Raises RecipeError when there is none: a low threshold needs more values than `num_perm` allows.
    """
    plans = [Bands(_bands_for(threshold, rows), rows) for rows in range(1, num_perm + 1)]
    plans = [plan for plan in plans if plan.bins <= num_perm]
    if not plans:
        raise RecipeError(
            f"num_perm: {num_perm} is too few to find pairs at threshold {threshold:g}; "
            f"it takes at least {_bands_for(threshold, 1)} (or a higher threshold)"
        )
    return min(plans, key=_cost)


def _bands_for(threshold: float, rows: int) -> int:
    """The fewest bands of so many rows that find a pair at the threshold with probability FOUND."""
    agree = threshold**rows
    if agree >= 1.0:
        return 1
    if agree < 1e-12:  # far beyond any budget
        return 1 << 40
    return math.ceil(math.log(1.0 - FOUND) / math.log1p(-agree))


def _cost(plan: Bands) -> float:
    return plan.bins + _LOOKUP * plan.number + _CONFIRM * _STRANGERS * plan.found(_STRANGE)
