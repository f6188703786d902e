"""The step `judge`: completions compared two by two by a model, each pair in both orders.

Between `pool` or `evolve` and `select` or `pairs`. A verdict that changes with the order says more of the order than of the texts: it is a
tie (Zheng et al. 2023, https://arxiv.org/abs/2306.05685). How often that happens (flip rate), how often the one shown first wins (one half
where place does not matter) and how many answers were no verdict at all stand in the report.

A completion's score is its share of the comparisons it was in, a tie being half of one. A comparison of which either order has no
verdict does not count, for it could not be told from a preference for the place; a completion with none that counts is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from rlhf.data.rows import Located, Row, Text, text_of
from rlhf.generation.text_engine import Answer
from rlhf.recipe.synthesis import JudgeStep
from rlhf.synthesis.answering import content
from rlhf.synthesis.asking import Ask, Given, Lane, Made
from rlhf.synthesis.prompts import built_in, fenced, filled, nonce, template
from rlhf.synthesis.scoring import completions_to_score, with_scores
from rlhf.synthesis.verdicts import VERDICTS, Verdict, last_lines, rationale_of, verdict_of

Outcome = float  # of the first of a pair: 1 it is the better one, 0 the worse, 0.5 a tie


@dataclass
class Comparisons:
    """What the judge's verdicts came to, over all pairs."""

    pairs: int = 0
    undecided: int = 0
    flipped: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    shown: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    unparsed: int = 0
    failed: int = 0
    answers: int = 0
    answers_unparsed: int = 0

    def outcome(self, forward: Verdict | None, backward: Verdict | None) -> Outcome | None:
        """Both orders' verdicts as one; `backward` is what was said with the second shown first. None without both."""
        self.pairs += 1
        for verdict in (forward, backward):
            if verdict is not None:
                self.shown[verdict] += 1
        if forward is None or backward is None:
            self.undecided += 1
            return None
        back = {"A": 0.0, "B": 1.0, "tie": 0.5}[backward]
        there = {"A": 1.0, "B": 0.0, "tie": 0.5}[forward]
        self.flipped += there != back
        outcome = there if there == back else 0.5
        self.outcomes[{1.0: "first", 0.0: "second", 0.5: "tie"}[outcome]] += 1
        return outcome

    def facts(self) -> dict[str, Any]:
        decided = self.pairs - self.undecided
        places = self.shown["A"] + self.shown["B"]
        return {
            "comparisons": self.pairs,
            "undecided": self.undecided,
            "outcomes": dict(self.outcomes.most_common()),
            "flips": self.flipped,
            "flip_rate": self.flipped / decided if decided else None,
            "shown_first_wins": self.shown["A"] / places if places else None,
            "verdicts_asked": self.asked,
            "unparsed": self.unparsed,
            "unparsed_rate": self.unparsed / self.asked if self.asked else 0.0,
            "failed": self.failed,
            "answers": self.answers,
            "answers_unparsed": self.answers_unparsed,
        }


class Judging:
    """Rows of completions to rows with scores, by comparisons."""

    def __init__(self, step: JudgeStep) -> None:
        self._template = template(step.prompt, "judge", step.language)
        choices = last_lines(VERDICTS, self._template, rationale=step.rationale)
        self.lanes: Sequence[Lane] = [Lane(step.engine, step.sampling, choices)]
        self.rounds = 1 + step.retries
        self._step = step
        self._form = built_in("form_judge_rationale" if step.rationale else "form_judge", step.language)
        self._reminder = built_in("form_again", step.language)
        self.comparisons = Comparisons()
        self._left_out: Counter[str] = Counter()

    def asks(self, row: Row, name: str, round: int, given: Given) -> Iterable[Ask]:
        completions = completions_to_score(row, "judge")
        for a, b in self.pairs(len(completions)):
            for order, (first, second) in enumerate(((a, b), (b, a))):
                if all(verdict_of(given(f"{a}-{b}.{order}.{earlier}")) is None for earlier in range(round)):
                    text = self._request(row["prompt"], completions[first], completions[second])
                    if round:
                        text = f"{text}\n\n{self._reminder}"
                    yield Ask(f"{a}-{b}.{order}.{round}", self._with_system(text))

    def made(self, row: Located, name: str, given: Given) -> Made:
        n = len(row.data["completions"])
        shares: list[list[Outcome]] = [[] for _ in range(n)]
        rationales: list[list[str]] = [[] for _ in range(n)]
        for a, b in self.pairs(n):
            answers = [self._answer(f"{a}-{b}.{order}", given) for order in (0, 1)]
            outcome = self.comparisons.outcome(verdict_of(answers[0]), verdict_of(answers[1]))
            if outcome is not None:
                shares[a].append(outcome)
                shares[b].append(1.0 - outcome)
            for mine, other, answer in ((a, b, answers[0]), (b, a, answers[1])):
                rationales[mine].append(f"against {other}: {rationale_of(answer)}")
        scores = [sum(share) / len(share) if share else None for share in shares]
        words = ["\n".join(r) for r in rationales] if self._step.rationale else None
        return with_scores(row.data, scores, self._left_out, rationales=words)

    def facts(self) -> dict[str, Any]:
        return {**self.comparisons.facts(), "left_out": dict(self._left_out)}

    def pairs(self, n: int) -> Sequence[tuple[int, int]]:
        """Which completions are compared."""
        return list(combinations(range(n), 2)) if self._step.pairs == "all" else [(0, i) for i in range(1, n)]

    def _answer(self, slot: str, given: Given) -> Answer | None:
        """The first try that holds a verdict, else the last one; each is counted."""
        counts = self.comparisons
        counts.asked += 1
        answered = 0
        for round in range(self.rounds):
            answer = given(f"{slot}.{round}")
            if answer is not None and answer.error is None:
                answered += 1
                counts.answers += 1
                if verdict_of(answer) is not None:
                    return answer
                counts.answers_unparsed += 1
        counts.unparsed += answered > 0
        counts.failed += answered == 0
        return answer

    def _request(self, prompt: Text, first: Text, second: Text) -> str:
        texts = [text_of(prompt), content(first), content(second)]
        number = nonce(texts)
        values = {
            "prompt": fenced("prompt", number, texts[0]),
            "a": fenced("answer_A", number, texts[1]),
            "b": fenced("answer_B", number, texts[2]),
            "form": self._form,
        }
        return filled(self._template, values)

    def _with_system(self, text: str) -> Text:
        if self._step.system is None:
            return text
        return [{"role": "system", "content": self._step.system}, {"role": "user", "content": text}]
