"""Judges that see two completions at once. Each pair is shown to them in both orders.

Such judges often prefer the completion that is shown first, or second, whatever it says. So each pair is asked twice. The verdict
is the mean of both answers, and the report says how often the answer changed with the order. A judge that always names the first
completion gives every model a win rate of one half and a flip rate of one: it is plain that this is no evidence. Scorers of single
completions do not need this; their scores are compared (`measures.outcomes`).
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
    """The probability, from 0 to 1, that each first completion is better than the second; one half is a tie."""

    def __call__(self, prompts: list[str], first: list[str], second: list[str]) -> list[float]: ...


@dataclass(frozen=True)
class Verdicts:
    """One entry for each pair, [P]."""

    wins: NDArray[np.float64]  # 1: `own` is better in both orders; 0: in neither; one half: the orders disagree
    flipped: NDArray[np.float64]  # 1 where the answer (better, tie, worse) depends on the order
    first: NDArray[
        np.float64
    ]  # how often the completion shown first won, over both orders; one half for a judge without bias


def both_orders(judge: PairJudge, prompts: Sequence[str], own: Sequence[str], other: Sequence[str]) -> Verdicts:
    """Compare `own` with `other`, shown in both orders. Raises RlhfError for answers outside [0, 1]."""
    own_first = _ask(judge, prompts, own, other)
    other_first = _ask(judge, prompts, other, own)
    there, back = own_first, 1 - other_first
    return Verdicts(
        wins=(there + back) / 2,
        flipped=(np.sign(there - 0.5) != np.sign(back - 0.5)).astype(np.float64),
        first=(own_first + other_first) / 2,
    )


def load_pair_judge(section: PairJudgeSection) -> PairJudge:
    """The function that a recipe names. Raises RecipeError if it cannot be imported."""
    judge: PairJudge = import_callable(section.callable)
    return judge


def _ask(judge: PairJudge, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
    answers = np.asarray([float(p) for p in judge(list(prompts), list(first), list(second))])
    if len(answers) != len(prompts):
        raise RlhfError(f"a pair judge returned {len(answers)} verdicts for {len(prompts)} pairs")
    if not ((answers >= 0) & (answers <= 1)).all():  # also where not a number
        raise RlhfError("a pair judge returned a verdict outside [0, 1]")
    return answers
