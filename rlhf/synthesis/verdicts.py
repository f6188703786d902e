"""What a judge's answer says, read strictly: the last line that is not blank, and nothing else, exactly in the form asked for.

Used by `scoring` and `judging`. Candidates' texts are never looked at here, only the judge's own words; a verdict that a candidate spells
out can get into an answer only where the judge copies it, and then the judge's own last line still decides. An answer that was broken
off has no last line: what stands there may be a quotation. Everything else is unparsed, which is counted and never passes as a score.
"""

from __future__ import annotations

import re
from typing import Literal

from rlhf.data.formats.templates import placeholders
from rlhf.generation.text_engine import Answer, OneLine

Verdict = Literal["A", "B", "tie"]

SCORES = [f"Score: {n}" for n in range(1, 6)]
VERDICTS = [f"Verdict: {v}" for v in ("A", "B", "tie")]
_SCORE = re.compile(r"Score: ([1-5])")
_VERDICT = re.compile(r"Verdict: (A|B|tie)")


def last_lines(choices: list[str], template: str, *, rationale: bool) -> list[str]:
    """What an engine is told of the last line: with our own `{form}` and no rationale asked for, that it is the whole answer."""
    return choices if rationale or "form" not in placeholders(template) else OneLine(choices)


def score_of(answer: Answer | None) -> int | None:
    """1 to 5; None where there is no answer, or its last line is not exactly `Score: N`."""
    found = _SCORE.fullmatch(_last_line(answer))
    return int(found[1]) if found else None


def verdict_of(answer: Answer | None) -> Verdict | None:
    """A, B or tie; None where there is no answer, or its last line is not exactly one of `VERDICTS`."""
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
