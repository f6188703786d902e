"""`rlhf data lint`: findings from what `stats` measured, each with how many, where one is, and what to do about it.

After `stats.measure`, before training. Three severities: an *error* makes a result worthless or stops the run (exit code 3), a
*warning* should be looked at, a *note* is good to know. A finding is a hint: the texts are the judge, so each names a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rlhf.data.lint import rows, texts
from rlhf.data.lint.finding import SEVERITIES, Finding


def lint(report: Mapping[str, Any]) -> list[Finding]:
    """Findings of a `stats` report, the grave ones first, in the order of the splits."""
    found = list(rows.leakage(report))
    for name, split in report["splits"].items():
        found += [finding for check in (*rows.CHECKS, *texts.CHECKS) for finding in check(name, split, report)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings as plain data, with their share."""
    return [{**asdict(finding), "share": finding.share} for finding in findings]
