"""A raw row's fields under their canonical names, and what a format says of itself.

The ground of `formats`: every converter reads its row through `Fields`, so that a missing column, a null or a wrong type is
said in the same words everywhere, with the file's own column name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rlhf.data.rows import Located, Row, text_of
from rlhf.errors import DataError

NO_COLUMNS: Mapping[str, str] = {}


class Fields:
    """A row's fields under their canonical names, each read with its rules. Raises DataError with its place."""

    __slots__ = ("columns", "data", "located", "template", "template_no_input")

    def __init__(
        self,
        located: Located,
        columns: Mapping[str, str] | None = None,
        template: str | None = None,
        template_no_input: str | None = None,
    ) -> None:
        self.located, self.template, self.template_no_input = located, template, template_no_input
        self.columns = columns or NO_COLUMNS
        self.data: Row = located.data
        if columns:
            taken = set(columns.values())
            self.data = {k: v for k, v in located.data.items() if k not in taken}
            self.data |= {name: located.data[column] for name, column in columns.items() if column in located.data}

    def error(self, field: str, reason: str) -> DataError:
        """A DataError at this row and field, the field under the file's own name."""
        return self.located.error(reason, self.columns.get(field, field))

    def get(self, field: str) -> Any:
        """The field's value, which must be there and not null."""
        value = self.data.get(field)
        if value is None:
            raise self.error(field, "is null" if field in self.data else "is missing")
        return value

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.data.get(field) is not None

    def text(self, field: str) -> str:
        """Text that is not blank, unchanged."""
        value = self.get(field)
        if not isinstance(value, str):
            raise self.error(field, f"must be text, not {type(value).__name__}")
        if not value or value.isspace():
            raise self.error(field, "is empty")
        return value

    def optional_text(self, field: str) -> str:
        """Text, or "" where the field is missing, null or blank."""
        value = self.data.get(field)
        if value is None or (isinstance(value, str) and not value.strip()):
            return ""
        return self.text(field)

    def list(self, field: str) -> list[Any]:
        """A list; a CSV cell may hold it as JSON."""
        value = self.get(field)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise self.error(field, "must be a list") from None
        if not isinstance(value, list):
            raise self.error(field, f"must be a list, not {type(value).__name__}")
        return value

    def objects(self, field: str) -> Iterator[Mapping[str, Any]]:
        """The objects of a list of objects."""
        for item in self.list(field):
            if not isinstance(item, dict):
                raise self.error(field, f"must be a list of objects, holds {type(item).__name__}")
            yield item

    def number(self, field: str, value: Any) -> float:
        """A finite number; a CSV cell holds it as text, a table perhaps as a decimal."""
        try:
            is_number = isinstance(value, int | float | str | Decimal) and not isinstance(value, bool)
            number = float(value) if is_number else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.error(field, f"must be a finite number: {shown(value)}")
        return number

    def boolean(self, field: str) -> bool:
        """true or false; 1 or 0 and the words as text, as CSV has them, are taken too."""
        return self._boolean(field, self.get(field))

    def booleans(self, field: str, n: int) -> Sequence[bool]:
        """One true or false for each of `n` completions."""
        values = self.list(field)
        if len(values) != n:
            raise self.error(field, f"has {len(values)} values for {n} completions")
        return [self._boolean(field, value) for value in values]

    def _boolean(self, field: str, value: Any) -> bool:
        found = as_boolean(value)
        if found is None:
            raise self.error(field, f"must be true or false (or 1 or 0): {shown(value)}")
        return found


def as_boolean(value: Any) -> bool | None:
    """What a label says, None where it is neither yes nor no."""
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    return None


def is_judgement(value: Any) -> bool:
    """Whether a label can hardly be anything but good or bad; 0 and 1 may also be the names of two classes."""
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


def shown(value: Any) -> str:
    """A value for a message, short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def distinct(f: Fields, row: Row, field: str = "rejected") -> Row:
    """The pair, whose sides must differ: equal ones teach nothing, and a loss over them is a constant."""
    if row["chosen"] == row["rejected"] or text_of(row["chosen"]) == text_of(row["rejected"]):
        raise f.error(field, "is equal to chosen")
    return row


@dataclass(frozen=True)
class Spec:
    """A format: how a row is converted, which columns it needs, and when its columns leave no other reading.

    `needs` are alternatives, each the set of columns that must be there. `fits` says, of a row that has them, whether nothing else in
    it speaks for another format; None for a format that is taken only by name. `template` are the names a `template:` may hold,
    `presets` the templates that have a name.
    """

    convert: Callable[[Fields], Row]
    needs: tuple[tuple[str, ...], ...]
    fits: Callable[[Fields], bool] | None
    optional: tuple[str, ...] = ()
    template: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
