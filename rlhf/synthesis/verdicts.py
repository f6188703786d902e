"""What a judge's answer says. Only the last line that is not blank counts, and it must have exactly the form that was asked for.

Used by `scoring` and `judging`. The texts of candidates are never looked at here, only the judge's own words. A candidate may
contain a verdict, and the judge may copy it; the judge's own last line still decides. An answer that was cut off has no last
line, because what stands there may be a quotation. Everything else is *unparsed*: it is counted, and is never taken for a score.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.data.formats.templates import placeholders
from rlhf.generation.text_engine import Answer, OneLine

Verdict = Literal["A", "B", "tie"]

SCORES = [f"Score: {n}" for n in range(1, 6)]
VERDICTS = [f"Verdict: {v}" for v in ("A", "B", "tie")]
_SCORE = re.compile(r"Score: ([1-5])")
_VERDICT = re.compile(r"Verdict: (A|B|tie)")


@dataclass
class Readings:
    """How many answers of a judge could be read. A request and its repetitions count once, except in the last two numbers."""

    asked: int = 0
    unparsed: int = 0  # answered, and no answer could be read
    failed: int = 0  # not answered
    answers: int = 0
    answers_unparsed: int = 0

    def first(self, tries: Iterable[Answer | None], read: Callable[[Answer | None], object]) -> Answer | None:
        """The first try that can be read, else the last one; counts it."""
        self.asked += 1
        answered, answer = 0, None
        for answer in tries:
            if answer is not None and answer.error is None:
                answered += 1
                if read(answer) is not None:
                    self.answers += answered
                    return answer
                self.answers_unparsed += 1
        self.answers += answered
        self.unparsed += answered > 0
        self.failed += answered == 0
        return answer

    def facts(self) -> dict[str, Any]:
        """For the step's report."""
        return {
            "unparsed": self.unparsed,
            "unparsed_rate": self.unparsed / self.asked if self.asked else 0.0,
            "failed": self.failed,
            "answers": self.answers,
            "answers_unparsed": self.answers_unparsed,
        }


def last_lines(choices: list[str], template: str, *, rationale: bool) -> list[str]:
    """What the engine is told about the last line. Our own `{form}` without a rationale asks for that line alone."""
    return choices if rationale or "form" not in placeholders(template) else OneLine(choices)


def score_of(answer: Answer | None) -> int | None:
    """1 to 5; None if there is no answer, or its last line is not exactly `Score: N`."""
    found = _SCORE.fullmatch(_last_line(answer))
    return int(found[1]) if found else None


def verdict_of(answer: Answer | None) -> Verdict | None:
    """A, B or tie; None if there is no answer, or its last line is not exactly one of `VERDICTS`."""
    found = _VERDICT.fullmatch(_last_line(answer))
    return found[1] if found else None  # type: ignore[return-value]


def rationale_of(answer: Answer | None) -> str:
    """What the judge wrote before its last line."""
    if answer is None or not answer.texts:
        return ""
    return answer.texts[0].rstrip().rpartition("\n")[0].strip()


def _last_line(answer: Answer | None) -> str:
    if answer is None or answer.error is not None or not answer.texts or not answer.ended[0]:
        return ""
    return answer.texts[0].rstrip().rpartition("\n")[2].strip()
