"""The step `score`: each completion of a row gets a number, from a rating model, a reward model, or a callable.

It stands after `pool` or `evolve`, and before `select` or `pairs`. A rating model is asked as in UltraFeedback (Cui et al.
2023, https://arxiv.org/abs/2310.01377): one mark from 1 to 5, or one for each aspect and then their mean, at temperature 0. If
the last line is not a score, the model is asked again, up to `retries` times, with a reminder of the form. One thing differs: an
answer that still cannot be read gives no score, where UltraFeedback gives a middling one. Its completion is left out, and the
report says how many there were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf.data.rows import Located, Row, Text, text_of
from rlhf.recipe.synthesis import ScoreStep, TextSampling
from rlhf.synthesis.answering import content
from rlhf.synthesis.asking import Ask, Given, Lane, Made
from rlhf.synthesis.prompts import built_in, fill_fenced, template
from rlhf.synthesis.verdicts import SCORES, Readings, last_lines, rationale_of, score_of

SCORER = "scorer"  # the engine's name when a reward model or a callable is asked
UNSCORED = "fewer than two of its completions have a score"


class Rating:
    """Scores by a model that is asked for a mark from one to five, for each aspect."""

    def __init__(self, step: ScoreStep) -> None:
        assert step.engine is not None
        self._template = template(step.prompt, "score", step.language)
        choices = last_lines(SCORES, self._template, rationale=step.rationale)
        self.lanes: Sequence[Lane] = [Lane(step.engine, step.sampling, choices)]
        self.rounds = 1 + step.retries
        self._step = step
        self._aspects = {aspect: built_in(f"aspect_{aspect}", step.language) for aspect in step.aspects}
        self._form = built_in("form_score_rationale" if step.rationale else "form_score", step.language)
        self._reminder = built_in("form_again", step.language)
        self._readings = Readings()
        self._marks: dict[str, Counter[int]] = {}
        self._left_out: Counter[str] = Counter()

    def asks(self, row: Row, name: str, round: int, given: Given) -> Iterable[Ask]:
        for index, completion in enumerate(completions_to_score(row, "score")):
            for number, aspect in enumerate(self._aspects.values()):
                if all(score_of(given(f"{index}.{number}.{earlier}")) is None for earlier in range(round)):
                    fences = {
                        "prompt": ("prompt", text_of(row["prompt"])),
                        "completion": ("answer", content(completion)),
                    }
                    text, _ = fill_fenced(self._template, fences, aspect=aspect, form=self._form)
                    # the same words would get the same answer from greedy decoding
                    yield Ask(f"{index}.{number}.{round}", f"{text}\n\n{self._reminder}" if round else text)

    def made(self, row: Located, name: str, given: Given) -> Made:
        scores: list[float | None] = []
        rationales = []
        for index, _ in enumerate(row.data["completions"]):
            marks, words = [], []
            for number, aspect in enumerate(self._aspects):
                tries = (given(f"{index}.{number}.{round}") for round in range(self.rounds))
                answer = self._readings.first(tries, score_of)
                counted = self._marks.setdefault(aspect, Counter())
                if (mark := score_of(answer)) is not None:
                    counted[mark] += 1
                    marks.append(mark)
                words.append(f"{aspect}: {rationale_of(answer)}")
            scores.append(sum(marks) / len(marks) if len(marks) == len(words) else None)
            rationales.append("\n".join(words))
        return with_scores(row.data, scores, self._left_out, rationales=rationales if self._step.rationale else None)

    def facts(self) -> dict[str, Any]:
        marks = {aspect: {str(m): n for m, n in sorted(counts.items())} for aspect, counts in self._marks.items()}
        return {
            "ratings": self._readings.asked,
            **self._readings.facts(),
            "marks": marks,
            "left_out": dict(self._left_out),
        }


class Measuring:
    """Scores by a reward model or a callable. They are asked through `scorer.ScorerEngine`."""

    rounds = 1

    def __init__(self, step: ScoreStep) -> None:
        self.lanes: Sequence[Lane] = [Lane(SCORER, TextSampling(temperature=0.0))]
        self._total = 0.0
        self._scored = 0
        self._left_out: Counter[str] = Counter()

    def asks(self, row: Row, name: str, round: int, given: Given) -> Iterable[Ask]:
        turns = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "prompt", "content": row["prompt"]}]
        for index, completion in enumerate(completions_to_score(row, "score")):
            yield Ask(f"{index}", [*turns, {"role": "assistant", "content": content(completion)}])

    def made(self, row: Located, name: str, given: Given) -> Made:
        scores: list[float | None] = []
        for index, _ in enumerate(row.data["completions"]):
            answer = given(f"{index}")
            scores.append(float(answer.texts[0]) if answer is not None and answer.error is None else None)
        whole = [score for score in scores if score is not None]
        self._total += sum(whole)
        self._scored += len(whole)
        return with_scores(row.data, scores, self._left_out)

    def facts(self) -> dict[str, Any]:
        mean = self._total / self._scored if self._scored else None
        return {"scored": self._scored, "mean_score": mean, "left_out": dict(self._left_out)}


def completions_to_score(row: Row, step: str) -> list[Text]:
    """The completions to be scored. Raises ValueError for a row without a list of completions."""
    if "completions" not in row:
        raise ValueError(f"{step} needs rows of several completions; put generate (into: completions) or pool before")
    return list(row["completions"])


def with_scores(
    row: Row, scores: Sequence[float | None], counts: Counter[str], *, rationales: Sequence[str] | None = None
) -> Made:
    """The row with these scores, which replace any that it had. A completion without a score is left out.

    If fewer than two completions are left, there is no row. `counts` gets what was left out or replaced.
    """
    keep = [i for i, score in enumerate(scores) if score is not None]
    if lost := len(scores) - len(keep):
        counts["completions without a score"] += lost
    if "scores" in row or "ranking" in row:
        counts["scores or ranking of the row replaced"] += 1
    if len(keep) < 2:
        return Made(reason=UNSCORED)
    columns = {
        "completions": row["completions"], "scores": scores, "models": row.get("models"), "rationales": rationales,
        "ended": row.get("ended"),
    }  # fmt: skip
    kept = {name: [column[i] for i in keep] for name, column in columns.items() if column is not None}
    return Made([{"prompt": row["prompt"], **kept}])
