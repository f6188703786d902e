"""Sources to canonical rows, with an account of every row: what each later stage of data starts from.

Joins `sources`, `recognise` and `formats`. For every source `rows_in = rows_out + dropped`, by reason, checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from rlhf.data.formats import convert
from rlhf.data.recognise import SAMPLE, choose
from rlhf.data.rows import Located, Quarantine, kind_of
from rlhf.data.sources import read
from rlhf.errors import DataError
from rlhf.recipe.sections import SourceSection


@dataclass(frozen=True)
class Loaded:
    """Canonical rows; per source {path, format, recognised, kind, rows_in, rows_out, dropped}; what was set aside."""

    rows: list[Located]
    sources: list[dict[str, Any]]
    quarantine: Quarantine

    @property
    def dropped(self) -> dict[str, int]:
        """Quarantined rows of all sources, by reason."""
        return self.quarantine.counts()


def load(sources: Sequence[SourceSection], *, needs_rows: bool = True) -> Loaded:
    """Read all sources in order. With `needs_rows`, raises DataError when not one usable row is left, and why."""
    quarantine = Quarantine()
    rows: list[Located] = []
    reports = []
    for source in sources:
        found, report = _load_source(source, quarantine, len(rows))
        rows += found
        reports.append(report)
    if needs_rows and sources and not rows:
        first = quarantine.entries[0] if quarantine.entries else None
        most = list(quarantine.counts().items())[:3]
        why = "; ".join(f"{n} x {reason}" for reason, n in most) or "the files are empty"
        raise DataError(
            first["file"] if first else ", ".join(s.path for s in sources),
            f"no usable row: {why}",
            row=first["row"] if first else None,
        )
    return Loaded(rows, reports, quarantine)


def _load_source(source: SourceSection, quarantine: Quarantine, start: int) -> tuple[list[Located], dict[str, Any]]:
    seen, aside = quarantine.rows_in, len(quarantine.entries)
    raw = read(source, quarantine)
    head = list(islice(raw, SAMPLE))
    format = choose(head, source) if head else source.format
    rows: list[Located] = []
    for located in chain(head, raw):
        assert format is not None
        try:
            data = convert(located, format, source.columns)
            rows.append(Located(located.file, located.row, data, start + len(rows)))
        except DataError as e:
            quarantine.catch(e)
    report = {
        "path": source.path,
        "format": format,
        "recognised": source.format is None and format is not None,
        "kind": kind_of(rows[0].data) if rows else None,
        "rows_in": quarantine.rows_in - seen,
        "rows_out": len(rows),
        "dropped": quarantine.counts(aside),
    }
    assert report["rows_in"] == len(rows) + len(quarantine.entries) - aside, report
    return rows, report
