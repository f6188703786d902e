"""The step `evolve` (EvolQuality): a model rewrites completions, each time by one of five methods.

It stands between `pool` and `score`. The methods are those of Deita's EvolQuality (Liu et al. 2023,
https://arxiv.org/abs/2312.15685), after WizardLM (Xu et al. 2023): helpfulness, relevance, deepening, creativity, details. A
hash of the seed and the row chooses one. Evolution i rewrites the text that evolution i - 1 made, so each evolution is a round.
If an evolution fails (no text, or the same text again), this completion is not rewritten further, and the report counts it. The
rows' old scores do not hold for the new completions, so they are left out; the report says for how many rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rlhf.data.rows import Located, Row, Text, ended_of, kind_of, text_of, with_ended
from rlhf.generation.text_engine import Answer, as_completion
from rlhf.recipe.synthesis import EvolveStep
from rlhf.synthesis.answering import SOURCE, content
from rlhf.synthesis.asking import Ask, Given, Lane, Made, chance
from rlhf.synthesis.prompts import built_in, fill_fenced, template, with_system, without_fence

FAILED, EMPTY, UNCHANGED, FENCED = "the engine failed", "empty", "unchanged", "repeats the fence of its prompt"


class Evolving:
    """Makes rows with more, or better, completions."""

    def __init__(self, step: EvolveStep, seed: int) -> None:
        self.lanes: Sequence[Lane] = [Lane(step.engine, step.sampling)]
        self.rounds = step.evolutions
        self._step, self._seed = step, seed
        self._template = template(step.prompt, "evolve", step.language)
        self._methods: dict[str, str] = {name: built_in(f"method_{name}", step.language) for name in step.methods}
        self._used: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._evolved = self._broken = self._scores_left = 0

    def asks(self, row: Row, name: str, round: int, given: Given) -> Iterable[Ask]:
        for index, text in enumerate(_completions(row)):
            *_, last = self._chain(row, name, index, text, round, given)
            if last is not None:
                yield Ask(f"{index}.{round}", self._request(row, name, index, last, round)[0])

    def made(self, row: Located, name: str, given: Given) -> Made:
        data, own = row.data, _completions(row.data)
        models = list(data.get("models", [SOURCE] * len(own)))
        texts, labels, ended = list(own), list(models), ended_of(data)
        for index, text in enumerate(own):
            _, *chain = self._chain(data, name, index, text, self.rounds, given, count=True)
            new = [as_completion(data["prompt"], t) for t in chain if t is not None]
            ends = [self._ended(given, index, round) for round in range(len(new))]
            if self._step.keep == "all":
                texts += new
                labels += [self._step.engine] * len(new)
                ended += ends
            elif new:
                texts[index], labels[index], ended[index] = new[-1], self._step.engine, ends[-1]
        self._scores_left += "scores" in data or "ranking" in data
        if kind_of(data) == "demonstration" and self._step.keep == "last":
            made: Row = {"prompt": data["prompt"], "completion": texts[0]}
        else:
            made = {"prompt": data["prompt"], "completions": texts, "models": labels}
        return Made([made if all(ended) else with_ended(made, ended)])

    def facts(self) -> dict[str, Any]:
        return {
            "evolved": self._evolved,
            "methods": dict(sorted(self._used.items())),
            "evolutions_without_result": dict(self._failed.most_common()),
            "answers_cut_off": self._broken,
            "rows_whose_scores_were_left_out": self._scores_left,
        }

    def _chain(
        self, row: Row, name: str, index: int, text: Text, rounds: int, given: Given, *, count: bool = False
    ) -> Iterator[str | None]:
        """The completion and its rewritings in the first `rounds` rounds. A last None says that an evolution failed."""
        now = content(text)
        yield now
        for round in range(rounds):
            answer = given(f"{index}.{round}")
            new, reason = self._rewritten(answer, now, self._request(row, name, index, now, round)[1])
            if count:
                self._count(answer, reason, self._method(name, index, round))
            if reason:
                yield None
                return
            now = new
            yield now

    @staticmethod
    def _ended(given: Given, index: int, round: int) -> bool:
        """Whether the rewriting of this round came to its end."""
        answer = given(f"{index}.{round}")
        return answer is None or answer.ended[0]

    def _rewritten(self, answer: Answer | None, before: str, number: str) -> tuple[str, str]:
        """(the new text, the reason why it does not count)."""
        if answer is None or answer.error is not None:
            return "", FAILED
        text = without_fence(answer.texts[0], number)
        if text is None:
            return "", FENCED
        if not text:
            return "", EMPTY
        return text, UNCHANGED if text == before.strip() else ""

    def _request(self, row: Row, name: str, index: int, text: str, round: int) -> tuple[Text, str]:
        """(what the model is asked, the digits of its fences)."""
        fences = {"prompt": ("prompt", text_of(row["prompt"])), "completion": ("answer", text)}
        method = self._methods[self._method(name, index, round)]
        request, number = fill_fenced(self._template, fences, method=method)
        return with_system(self._step.system, request), number

    def _method(self, name: str, index: int, round: int) -> str:
        return self._step.methods[int(chance(self._seed, "evolve", name, index, round) * len(self._step.methods))]

    def _count(self, answer: Answer | None, reason: str, method: str) -> None:
        self._broken += answer is not None and answer.error is None and not answer.ended[0]
        if reason:
            self._failed[reason] += 1
        else:
            self._evolved += 1
            self._used[method] += 1


def _completions(row: Row) -> list[Text]:
    kind = kind_of(row)
    if kind not in ("demonstration", "ranking"):
        raise ValueError(f"evolve needs completions to rewrite, and this is a {kind} row")
    return [row["completion"]] if kind == "demonstration" else list(row["completions"])
