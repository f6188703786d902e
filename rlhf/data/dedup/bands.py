"""How many bands of how many rows: the plan of a locality-sensitive hash for one similarity threshold.

A sketch has bands x rows values. Two texts are candidates if they agree in all rows of some band. At Jaccard similarity s, each value
agrees with probability s, so a pair is found with probability 1 - (1 - s^rows)^bands (Leskovec, Rajaraman, Ullman: Mining of Massive
Datasets, 3.4.2). The reference recipe gives false candidates and missed pairs the same weight: at 0.8 it has 17 bands of 15 rows, and
finds a pair at exactly 0.8 in 46% of cases. Here every candidate is confirmed, so a false one costs only time. The plan finds a pair at
the threshold with probability FOUND, and has the least expected work of all such plans.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from rlhf.errors import RecipeError

FOUND = 0.999

# The work for one text, in units of one sketch value (a few ns): the lookup and insertion in a band; the confirmation of a candidate. Then
# how many unrelated texts there are, and how similar they are. Rough numbers are enough: all plans find the pairs, and these choose one.
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
        """The probability that a pair with this Jaccard similarity becomes a candidate."""
        return 1.0 - (1.0 - similarity**self.rows) ** self.number


def choose_bands(threshold: float, num_perm: int) -> Bands:
    """The cheapest plan with at most `num_perm` values that finds a pair at `threshold` with probability FOUND.

    Raises RecipeError if there is no such plan: a low threshold needs more values than `num_perm`.
    """
    plans = [Bands(_bands_for(threshold, rows), rows) for rows in range(1, num_perm + 1)]
    plans = [plan for plan in plans if plan.bins <= num_perm]
    if not plans:
        raise RecipeError(
            f"num_perm: {num_perm} is too few to find pairs at threshold {threshold:g}; "
            f"set it to {_bands_for(threshold, 1)} or more, or raise the threshold"
        )
    return min(plans, key=_cost)


def _bands_for(threshold: float, rows: int) -> int:
    """The fewest bands of so many rows that find a pair at the threshold with probability FOUND."""
    agree = threshold**rows
    if agree >= 1.0:
        return 1
    if agree < 1e-12:  # more than any num_perm
        return 1 << 40
    return math.ceil(math.log(1.0 - FOUND) / math.log1p(-agree))


def _cost(plan: Bands) -> float:
    return plan.bins + _LOOKUP * plan.number + _CONFIRM * _STRANGERS * plan.found(_STRANGE)
