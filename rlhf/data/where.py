"""Which raw rows a source takes, and what groups them: its `where` and `group` keys.

Between reading and `formats`: the columns are the file's own. A row that `where` leaves out is no bad row; it is counted, not quarantined.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.data.rows import Located, Quarantine
from rlhf.errors import DataError
from rlhf.recipe.sections import SourceSection

SAMPLE = 100  # rows in which a column has to appear


def select(rows: Iterable[Located], source: SourceSection, quarantine: Quarantine) -> Iterator[Located]:
    """The rows that `where` takes, each with its group. Raises DataError for a column that the first rows do not have."""
    wanted = {column: values_of(source.path, column, values) for column, values in (source.where or {}).items()}
    missing = dict.fromkeys(wanted, "where") | ({source.group: "group"} if source.group else {})
    columns = source.columns or {}
    if not missing:
        yield from (_by_its_own(located, columns) for located in rows)
        return
    seen: dict[str, None] = {}
    first: Located | None = None
    for count, located in enumerate(rows):
        first = first or located
        if missing:
            seen |= dict.fromkeys(located.data)
            missing = {column: key for column, key in missing.items() if column not in seen}
            if missing and count == SAMPLE - 1:
                raise _no_column(source, missing, seen)
        left_out = next((c for c, values in wanted.items() if as_text(located.data.get(c)) not in values), None)
        if left_out is not None:
            quarantine.leave_out(f"where: {left_out}")
        elif not source.group:
            yield _by_its_own(located, columns)
        elif located.data.get(source.group) is None:
            quarantine.add(located.file, located.row, source.group, "is missing, and rows are grouped by it")
        else:
            yield replace(located, group=as_text(located.data[source.group]))
    if missing and first is not None:
        raise _no_column(source, missing, seen)


def values_of(path: str, column: str, values: Collection[str | int] | str) -> frozenset[str]:
    """The values that `where` takes, as text: those in the recipe, or the lines of a text file."""
    if not isinstance(values, str):
        return frozenset(map(str, values))
    try:
        lines = Path(values).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            path, f"where: {column}: {values} cannot be read as a text file of one value a line: {error}"
        ) from error
    return frozenset(line.strip() for line in lines if line.strip())


def as_text(value: Any) -> str | None:
    """A raw value as `where` and `group` compare it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)  # a number, or a date of a table


def own_group(names: Collection[str], columns: Mapping[str, str]) -> str | None:
    """The column by which a file's rows are grouped unasked, whatever format they are read in, if any.

    A Stack Exchange pair belongs to its question; and a folder that `build` wrote has a column `group`.
    """
    qid = columns.get("qid", "qid")
    if qid in names and columns.get("response_j", "response_j") in names:
        return qid
    return "group" if "group" in names and "prompt" in names and "group" not in columns.values() else None


def _by_its_own(located: Located, columns: Mapping[str, str]) -> Located:
    data = located.data
    if located.group is None and (column := own_group(data, columns)) and data[column] is not None:
        return replace(located, group=as_text(data[column]))
    return located


def _no_column(source: SourceSection, missing: Mapping[str, str], seen: Iterable[str]) -> DataError:
    column, key = next(iter(missing.items()))
    said = f"no such column: {column}" if key == "where" else f"{column}: no such column"
    return DataError(source.path, f"{key}: {said}; found {', '.join(seen)}")
