"""What a finding is, and the thresholds that make one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

# Thresholds, each with its reason. Shares are of a split's rows.
MATTERS = 0.01  # one row in a hundred moves a mean loss; below this share a finding is a note
LENGTH_BIAS = 0.60  # where length alone is right 3 times in 5, reward models often learn little else
LENGTH_BIAS_NOTE = 0.55
POSITION_BIAS = (
    0.05  # how much more often than 1/n completion i may be the best; above this, the position tells the answer
)
LABEL_BALANCE = 0.9  # the share of one label among unpaired rows; above this, the rarer label needs a weight


@dataclass(frozen=True)
class Finding:
    """`check` is a stable name. `example` is `file:row`, or `file:row = file:row` for two rows that are alike."""

    severity: Severity
    check: str
    what: str
    advice: str
    _: KW_ONLY
    count: int
    total: int
    example: str | None = None
    split: str = ""  # `lint` fills it in

    @property
    def share(self) -> float:
        return self.count / max(self.total, 1)


Measures = Mapping[str, Any]  # what `stats` measured of one split, or its whole report
Check = Callable[[Measures, Measures], Iterator[Finding]]  # a split's measures and the report, in; findings, out


def weighed(count: int, total: int) -> Severity:
    """A warning if the count is at least the share `MATTERS` of the total, else a note."""
    return "warning" if count >= MATTERS * total else "note"


def counted(count: int, word: str) -> str:
    """A number with its noun: 1 row, 2 rows."""
    return f"{count} {word}{'' if count == 1 else 's'}"
