"""Judges that see two completions at once, asked in both orders.

Such judges favour a place: the first completion, or the second, whatever it says. So each pair is asked twice, the
verdict is the mean of both answers, and how often the answer turned with the order is reported beside it. A judge that
always names the first gives every model a win rate of one half and a flip rate of one: no evidence, and visibly so.
Pointwise scorers need none of this; their scores are compared (`measures.outcomes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rlhf.errors import RlhfError
from rlhf.recipe.callables import import_callable
from rlhf.recipe.schema import PairJudgeSection


class PairJudge(Protocol):
    """The probability that each first completion is better than the second: 1, one half for a tie, 0, or between."""

    def __call__(self, prompts: list[str], first: list[str], second: list[str]) -> list[float]: ...


@dataclass(frozen=True)
class Verdicts:
    """One entry a pair, [P]."""

    wins: NDArray[np.float64]  # 1: `own` is better in both orders; 0: in neither; one half: the orders disagree
    flipped: NDArray[np.float64]  # 1 where the answer (better, tie, worse) depends on the order
    first: NDArray[np.float64]  # how often the first place won, over both orders; one half for a judge without bias


def both_orders(judge: PairJudge, prompts: Sequence[str], own: Sequence[str], other: Sequence[str]) -> Verdicts:
    """Ask for `own` against `other` with either in the first place. Raises RlhfError for answers outside [0, 1]."""
    own_first = _ask(judge, prompts, own, other)
    other_first = _ask(judge, prompts, other, own)
    there, back = own_first, 1 - other_first
    return Verdicts(
        wins=(there + back) / 2,
        flipped=(np.sign(there - 0.5) != np.sign(back - 0.5)).astype(np.float64),
        first=(own_first + other_first) / 2,
    )


def load_pair_judge(section: PairJudgeSection) -> PairJudge:
    """The function that a recipe names. Raises RecipeError where it cannot be imported."""
    judge: PairJudge = import_callable(section.callable)
    return judge


def _ask(judge: PairJudge, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
    answers = np.asarray([float(p) for p in judge(list(prompts), list(first), list(second))])
    if len(answers) != len(prompts):
        raise RlhfError(f"a pair judge returned {len(answers)} verdicts for {len(prompts)} pairs")
    if not ((answers >= 0) & (answers <= 1)).all():  # also where not a number
        raise RlhfError("a pair judge returned a verdict outside [0, 1]")
    return answers
