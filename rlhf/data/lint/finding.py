"""What a finding is, and the thresholds that make one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# Thresholds, each with its reason. Shares are of a split's rows.
MATTERS = 0.01  # one row in a hundred moves a mean loss; below it a finding is a note
LENGTH_BIAS = 0.60  # where length alone is right 3 times in 5, reward models have been seen to learn little else
LENGTH_BIAS_NOTE = 0.55
POSITION_BIAS = 0.05  # how far the share of "completion i is best" may be from 1/n: more, and the order gives it away
LABEL_BALANCE = 0.9  # of unpaired labels one way; beyond it the rarer kind needs a weight


@dataclass(frozen=True)
class Finding:
    """`check` is a stable name; `example` is `file:row`, or `file:row = file:row` for two that are alike."""

    severity: Severity
    check: str
    split: str
    what: str
    count: int
    total: int
    example: str | None
    advice: str

    @property
    def share(self) -> float:
        return self.count / max(self.total, 1)


Split = Mapping[str, Any]
Check = Callable[[str, Split, Mapping[str, Any]], Iterator[Finding]]


def weighed(count: int, total: int) -> Severity:
    """A warning from `MATTERS` of the rows on, else a note."""
    return "warning" if count >= MATTERS * total else "note"


def counted(count: int, word: str) -> str:
    """A number with its noun: 1 row, 2 rows."""
    return f"{count} {word}{'' if count == 1 else 's'}"
