"""The training doctor: it reads a run's metrics while they are logged, and says in one sentence what goes wrong and what to try.

It says each thing once, and again where it has become clearly worse. It knows only the lines of metrics.jsonl, so a resumed run
says what the unbroken one would have said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf.errors import RlhfError
from rlhf.train.findings import CHECKS, Line

WORSE = 2.0  # times as bad as when it was said last: one that grows by a tenth at every step is said a few times only
KEPT = 200  # lines at either end of a long run


@dataclass(frozen=True)
class Finding:
    """What is wrong since which step: the evidence, how bad it is, and what to try."""

    name: str
    step: int
    evidence: str
    severity: float
    advice: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.evidence}. {self.advice}. ({self.name})"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Doctor:
    """Watches one run. `lines`: what the run logged before it was interrupted."""

    def __init__(self, total_steps: int, lines: Sequence[Mapping[str, Any]] = ()) -> None:
        self._total_steps = total_steps
        self._history: list[Line] = []
        self._said: dict[str, float] = {}  # how bad each finding was when it was said last
        for line in lines:
            if line["step"]:  # line 0 is before training
                self._add(line)
            self._said |= {found["name"]: found["severity"] for found in line.get("findings", ())}

    def look(self, step: int, metrics: Mapping[str, float]) -> list[Finding]:
        """What the line of `step` shows that was not said before."""
        self._add({"step": step} | dict(metrics))
        found = []
        for name, (check, advice) in CHECKS.items():
            evidence = check(self._history)
            if evidence is not None and (name not in self._said or evidence.severity >= WORSE * self._said[name]):
                found.append(Finding(name, step, evidence.text, evidence.severity, advice))
        self._said |= {finding.name: finding.severity for finding in found}
        return found

    def _add(self, line: Mapping[str, Any]) -> None:
        """One more line, as it stands on file: null for what is not finite. Of a long run the first and the last lines are kept, and
        evaluations: no check looks at others.
        """
        own = {name: value for name, value in line.items() if name != "findings"}
        finite = {name: value if value is not None and math.isfinite(value) else None for name, value in own.items()}
        self._history.append(finite | {"progress": line["step"] / self._total_steps})
        if len(self._history) > 4 * KEPT:
            middle = [old for old in self._history[KEPT:-KEPT] if "eval/loss" in old]
            self._history = [*self._history[:KEPT], *middle[-KEPT:], *self._history[-KEPT:]]


def stop_at(found: Iterable[Finding], names: Sequence[str]) -> None:
    """Raises RlhfError for a finding that the recipe names (`doctor.halt`)."""
    for finding in found:
        if finding.name in names:
            raise RlhfError(
                f"{finding}. The run stopped because doctor.halt names {finding.name}. To go on from the newest checkpoint, take the "
                "name out"
            )
