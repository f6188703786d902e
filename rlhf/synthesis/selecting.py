"""The step `select`: of each row's scored completions, one becomes chosen and one rejected. It asks no model.

It stands after `score` or `judge`, instead of `pairs`, and makes one pair of each prompt. If several completions have the best
(or the worst) score, a hash of the seed, the prompt and the text decides. The order does not decide: a pool puts the models with
the larger weights first more often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf.data.rankings import below
from rlhf.data.rows import Located, Row, Text, grades_of, pair_of, text_of
from rlhf.recipe.synthesis import SelectStep
from rlhf.synthesis.answering import content
from rlhf.synthesis.asking import Ask, Given, Lane, Made, chance
from rlhf.synthesis.similarity import similarity

ONE, EQUAL, SAME, MARGIN, ALIKE = (
    "fewer than two completions",
    "all scores are equal",
    "chosen and rejected are the same text",
    "under min_margin",
    "over max_similarity",
)


class Selecting:
    """Makes pairs of scored rankings."""

    lanes: Sequence[Lane] = ()
    rounds = 0

    def __init__(self, step: SelectStep, seed: int) -> None:
        self._step, self._seed = step, seed
        self._chosen: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()

    def asks(self, row: Row, name: str, round: int, given: Given) -> Iterable[Ask]:
        return ()

    def made(self, row: Located, name: str, given: Given) -> Made:
        data = row.data
        if "completions" not in data or not ("scores" in data or "ranking" in data):
            raise ValueError("select needs completions with scores; put score or judge before it")
        if "scores" not in data and self._step.min_margin:
            raise ValueError("select.min_margin needs scores, and this row has only an order")
        grades, texts = grades_of(data), data["completions"]
        if len(texts) < 2:
            return Made(reason=ONE)
        best, worst = self._pick(text_of(data["prompt"]), texts, grades)
        if grades[best] == grades[worst]:
            return Made(reason=EQUAL)
        a, b = content(texts[best]), content(texts[worst])
        if a == b:
            return Made(reason=SAME)
        margin = grades[best] - grades[worst]
        if below(margin, self._step.min_margin):
            return Made(reason=MARGIN)
        if self._step.max_similarity < 1 and similarity(a, b) > self._step.max_similarity:
            return Made(reason=ALIKE)
        pair = pair_of(data, best, worst, margin if "scores" in data else None)
        if "models" in data:
            self._chosen[data["models"][best]] += 1
            self._rejected[data["models"][worst]] += 1
        return Made([pair])

    def facts(self) -> dict[str, Any]:
        return {"chosen_by_model": dict(self._chosen), "rejected_by_model": dict(self._rejected)}

    def _pick(self, prompt: str, texts: Sequence[Text], grades: Sequence[float]) -> tuple[int, int]:
        def coin(i: int) -> float:
            return chance(self._seed, "select", prompt, content(texts[i]))

        order = sorted(range(len(texts)), key=lambda i: (-grades[i], coin(i)))
        best = order[0]
        below = [i for i in order if grades[i] < grades[best]]
        if not below:
            return best, order[1]
        if self._step.rejected == "random_below_best":
            return best, min(below, key=coin)
        return best, min((i for i in below if grades[i] == grades[below[-1]]), key=coin)
