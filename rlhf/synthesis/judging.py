"""The step `judge`: a model compares completions two by two, each pair in both orders.

It stands after `pool` or `evolve`, and before `select` or `pairs`. If the verdict changes with the order, it says more about
the order than about the texts, so it is a tie (Zheng et al. 2023, https://arxiv.org/abs/2306.05685). The report says how often
this happens (`flip_rate`), how often the completion shown first wins (one half if the order does not matter), and how many
answers held no verdict.

A completion's score is its share of wins in its comparisons; a tie is half a win. A comparison with a verdict in only one
order does not count, because a preference for one side would look the same. A completion without any comparison that counts is
left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from rlhf.data.rows import Located, Row, text_of
from rlhf.recipe.synthesis import JudgeStep
from rlhf.synthesis.answering import content
from rlhf.synthesis.asking import Ask, Given, Lane, Made
from rlhf.synthesis.prompts import built_in, fill_fenced, template, with_system
from rlhf.synthesis.scoring import completions_to_score, with_scores
from rlhf.synthesis.verdicts import VERDICTS, Readings, Verdict, last_lines, rationale_of, verdict_of

Outcome = float  # of a pair's first completion: 1 it is better, 0 it is worse, 0.5 a tie


@dataclass
class Comparisons:
    """Counts of the judge's verdicts, over all pairs."""

    pairs: int = 0
    undecided: int = 0
    flipped: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    shown: Counter[str] = field(default_factory=Counter)

    def outcome(self, forward: Verdict | None, backward: Verdict | None) -> Outcome | None:
        """One outcome from both orders; None if one of them has no verdict. In `backward` the second completion was shown first."""
        self.pairs += 1
        self.shown.update(verdict for verdict in (forward, backward) if verdict is not None)
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
        """For the step's report."""
        decided = self.pairs - self.undecided
        wins = self.shown["A"] + self.shown["B"]
        return {
            "comparisons": self.pairs,
            "undecided": self.undecided,
            "outcomes": dict(self.outcomes.most_common()),
            "flips": self.flipped,
            "flip_rate": self.flipped / decided if decided else None,
            "shown_first_wins": self.shown["A"] / wins if wins else None,
        }


class Judging:
    """Gives the completions of a row scores, by comparisons."""

    def __init__(self, step: JudgeStep) -> None:
        self._template = template(step.prompt, "judge", step.language)
        choices = last_lines(VERDICTS, self._template, rationale=step.rationale)
        self.lanes: Sequence[Lane] = [Lane(step.engine, step.sampling, choices)]
        self.rounds = 1 + step.retries
        self._step = step
        self._form = built_in("form_judge_rationale" if step.rationale else "form_judge", step.language)
        self._reminder = built_in("form_again", step.language)
        self._comparisons, self._readings = Comparisons(), Readings()
        self._left_out: Counter[str] = Counter()

    def asks(self, row: Row, name: str, round: int, given: Given) -> Iterable[Ask]:
        prompt, completions = text_of(row["prompt"]), [content(c) for c in completions_to_score(row, "judge")]
        for a, b in self._pairs(len(completions)):
            for order, (first, second) in enumerate(((a, b), (b, a))):
                if all(verdict_of(given(f"{a}-{b}.{order}.{earlier}")) is None for earlier in range(round)):
                    fences = {
                        "prompt": ("prompt", prompt),
                        "a": ("answer_A", completions[first]),
                        "b": ("answer_B", completions[second]),
                    }
                    text, _ = fill_fenced(self._template, fences, form=self._form)
                    if round:
                        text = f"{text}\n\n{self._reminder}"
                    yield Ask(f"{a}-{b}.{order}.{round}", with_system(self._step.system, text))

    def made(self, row: Located, name: str, given: Given) -> Made:
        n = len(row.data["completions"])
        shares: list[list[Outcome]] = [[] for _ in range(n)]
        rationales: list[list[str]] = [[] for _ in range(n)]
        for a, b in self._pairs(n):
            forward, backward = (
                self._readings.first((given(f"{a}-{b}.{order}.{round}") for round in range(self.rounds)), verdict_of)
                for order in (0, 1)
            )
            outcome = self._comparisons.outcome(verdict_of(forward), verdict_of(backward))
            if outcome is not None:
                shares[a].append(outcome)
                shares[b].append(1.0 - outcome)
            rationales[a].append(f"against {b}: {rationale_of(forward)}")
            rationales[b].append(f"against {a}: {rationale_of(backward)}")
        scores = [sum(share) / len(share) if share else None for share in shares]
        words = ["\n".join(r) for r in rationales] if self._step.rationale else None
        return with_scores(row.data, scores, self._left_out, rationales=words)

    def facts(self) -> dict[str, Any]:
        read = {"verdicts_asked": self._readings.asked, **self._readings.facts()}
        return {**self._comparisons.facts(), **read, "left_out": dict(self._left_out)}

    def _pairs(self, n: int) -> Sequence[tuple[int, int]]:
        """Which completions are compared."""
        return list(combinations(range(n), 2)) if self._step.pairs == "all" else [(0, i) for i in range(1, n)]
