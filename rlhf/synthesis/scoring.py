"""The step `score`: each completion of a row gets a number, from a model that rates, a reward model, or a callable.

Between `pool` or `evolve` and `select` or `pairs`. A rating model is asked as UltraFeedback's was (Cui et al. 2023,
https://arxiv.org/abs/2310.01377): 1 to 5 overall, or aspect by aspect and then the mean; at temperature 0, and again, up to `retries`
times and with a reminder of the form, when its last line is not a score. Different from there: an answer that still does not parse is no score (not a middling one). Its
completion is left out, counted, and the share of such answers always shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf.data.rows import Located, Row, Text, text_of
from rlhf.recipe.synthesis import ScoreStep, TextSampling
from rlhf.synthesis.answering import content
from rlhf.synthesis.asking import Ask, Given, Lane, Made
from rlhf.synthesis.prompts import built_in, fenced, filled, nonce, template
from rlhf.synthesis.verdicts import SCORES, last_lines, rationale_of, score_of

SCORER = "scorer"  # the engine name under which a reward model or a callable is asked
UNSCORED = "fewer than two of its completions have a score"


class Rating:
    """Scores by a model that is asked for one to five, aspect by aspect."""

    def __init__(self, step: ScoreStep) -> None:
        assert step.engine is not None
        self._template = template(step.prompt, "score", step.language)
        choices = last_lines(SCORES, self._template, rationale=step.rationale)
        self.lanes: Sequence[Lane] = [Lane(step.engine, step.sampling, choices)]
        self.rounds = 1 + step.retries
        self._step = step
        self._aspects = [built_in(f"aspect_{aspect}", step.language) for aspect in step.aspects]
        self._form = built_in("form_score_rationale" if step.rationale else "form_score", step.language)
        self._reminder = built_in("form_again", step.language)
        self._count = _Counts()

    def asks(self, row: Row, name: str, round: int, given: Given) -> Iterable[Ask]:
        for index, completion in enumerate(completions_to_score(row, "score")):
            for number, aspect in enumerate(self._aspects):
                if all(score_of(given(f"{index}.{number}.{earlier}")) is None for earlier in range(round)):
                    text = self._request(row["prompt"], completion, aspect)
                    # greedy decoding would say the same again to the same words
                    yield Ask(f"{index}.{number}.{round}", f"{text}\n\n{self._reminder}" if round else text)

    def made(self, row: Located, name: str, given: Given) -> Made:
        scores: list[float | None] = []
        rationales = []
        for index, _ in enumerate(row.data["completions"]):
            marks, words = [], []
            for number, aspect in enumerate(self._step.aspects):
                tries = [given(f"{index}.{number}.{round}") for round in range(self.rounds)]
                last = next((i for i, answer in enumerate(tries) if score_of(answer) is not None), self.rounds - 1)
                self._count.add(aspect, score_of(tries[last]), tries[: last + 1])
                marks.append(score_of(tries[last]))
                words.append(f"{aspect}: {rationale_of(tries[last])}")
            whole = [mark for mark in marks if mark is not None]
            scores.append(sum(whole) / len(whole) if len(whole) == len(marks) else None)
            rationales.append("\n".join(words))
        return with_scores(
            row.data, scores, self._count.left_out, rationales=rationales if self._step.rationale else None
        )

    def facts(self) -> dict[str, Any]:
        return self._count.facts()

    def _request(self, prompt: Text, completion: Text, aspect: str) -> str:
        texts = [text_of(prompt), content(completion)]
        number = nonce(texts)
        values = {
            "prompt": fenced("prompt", number, texts[0]),
            "completion": fenced("answer", number, texts[1]),
            "aspect": aspect,
            "form": self._form,
        }
        return filled(self._template, values)


class Measuring:
    """Scores by a reward model or a callable, which are asked through `scorer.ScorerEngine`."""

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


class _Counts:
    """What rating came to: marks by aspect, and how many answers were no score."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self._marks: dict[str, Counter[int]] = {}
        self._ratings = self._unparsed = self._failed = self._answers = self._bad_answers = 0

    def add(self, aspect: str, mark: int | None, tries: Sequence[Any]) -> None:
        self._ratings += 1
        marks = self._marks.setdefault(aspect, Counter())
        answered = [answer for answer in tries if answer is not None and answer.error is None]
        self._answers += len(answered)
        self._bad_answers += sum(score_of(answer) is None for answer in answered)
        if mark is not None:
            marks[mark] += 1
        elif answered:
            self._unparsed += 1
        else:
            self._failed += 1

    def facts(self) -> dict[str, Any]:
        return {
            "ratings": self._ratings,
            "unparsed": self._unparsed,
            "unparsed_rate": self._unparsed / self._ratings if self._ratings else 0.0,
            "failed": self._failed,
            "answers": self._answers,
            "answers_unparsed": self._bad_answers,
            "marks": {aspect: {str(m): n for m, n in sorted(marks.items())} for aspect, marks in self._marks.items()},
            "left_out": dict(self.left_out),
        }


def completions_to_score(row: Row, step: str) -> list[Text]:
    """The completions to be scored. Raises ValueError for a row that is not of several completions."""
    if "completions" not in row:
        raise ValueError(f"{step} needs rows of several completions; put generate (into: completions) or pool before")
    return list(row["completions"])


def with_scores(
    row: Row, scores: Sequence[float | None], counts: Counter[str], *, rationales: Sequence[str] | None = None
) -> Made:
    """The row with its scores in the place of any that it had, without the completions that have none.

    No row where fewer than two are left. `counts` is told what was left out or replaced.
    """
    keep = [i for i, score in enumerate(scores) if score is not None]
    if lost := len(scores) - len(keep):
        counts["completions without a score"] += lost
    if "scores" in row or "ranking" in row:
        counts["scores or ranking of the row replaced"] += 1
    if len(keep) < 2:
        return Made(reason=UNSCORED)
    new: Row = {"prompt": row["prompt"], "completions": [row["completions"][i] for i in keep]}
    new["scores"] = [scores[i] for i in keep]
    if "models" in row:
        new["models"] = [row["models"][i] for i in keep]
    if rationales is not None:
        new["rationales"] = [rationales[i] for i in keep]
    return Made([new])
