"""`rlhf data lint`: findings from what `stats` measured. Each says how many rows it is about, where one is, and what to do.

It runs after `stats.measure` and before training. There are three severities. An *error* makes a result worthless or stops the run (exit
code 3). A *warning* should be looked at. A *note* is good to know. A finding is a hint, not proof: read the row that it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rlhf.data.lint import rows, texts
from rlhf.data.lint.finding import SEVERITIES, Finding


def lint(report: Mapping[str, Any]) -> list[Finding]:
    """The findings of a `stats` report: errors first, then warnings, then notes; within each in the order of the splits."""
    found = list(rows.leakage(report))
    for name, split in report["splits"].items():
        for check in (*rows.CHECKS, *texts.CHECKS):
            found += [replace(finding, split=name) for finding in check(split, report)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings as plain data, with their share."""
    return [{**asdict(finding), "share": finding.share} for finding in findings]
