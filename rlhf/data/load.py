"""Sources to canonical rows, with an account of every row. Every later step starts from these rows.

Joins `sources`, `recognise_format` and `formats`. Parquet and arrow files whose columns are plain text take the fast path of `convert_columns`.
A `Stream` is read once and holds one block of rows at a time. For every source, `rows_in + repeated = rows_out + dropped`; this is
checked here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf.data.formats import convert
from rlhf.data.recognise_format import SAMPLE, choose
from rlhf.data.rows import Located, Quarantine, chunks, kind_of
from rlhf.data.sources import columns_in, named_columns, read, read_file, table_files
from rlhf.data.where import select
from rlhf.errors import DataError, RecipeError
from rlhf.recipe.arguments import NONE, Columns
from rlhf.recipe.sections import Format, SourceSection

if TYPE_CHECKING:
    import pyarrow as pa


class Stream:
    """Canonical rows of sources in order, once: by iteration row by row, or with `blocks` as Arrow tables.

    `kinds` are the kinds of row that the method takes: they decide where a file's columns can be read in two ways. Afterwards `.sources`
    holds, for each source, {path, format, recognised, kind, rows_in, rows_out, repeated, dropped}. Rows that are read one by one carry
    those columns of their file that `keep` asks for (`Located.columns`). Raises DataError, with the reasons, when no row can be used
    (unless `needs_rows` is off), RecipeError for a source without a needed column, and whatever `sources` and `recognise_format` raise.
    """

    def __init__(
        self,
        sources: Sequence[SourceSection],
        *,
        seed: int = 0,
        quarantine: Quarantine | None = None,
        kinds: Collection[str] | None = None,
        needs_rows: bool = True,
        keep: Columns = NONE,
    ) -> None:
        self.quarantine = Quarantine() if quarantine is None else quarantine
        self.sources: list[dict[str, Any]] = []
        self._from, self._seed, self._kinds, self._needs_rows = sources, seed, kinds, needs_rows
        self._units = 0
        self._keep = keep

    @property
    def dropped(self) -> dict[str, int]:
        """Rows of all sources that did not come through, by reason."""
        return dict(sum((Counter(source["dropped"]) for source in self.sources), Counter()))

    @property
    def rows_in(self) -> int:
        """Rows read."""
        return sum(source["rows_in"] for source in self.sources)

    @property
    def repeated(self) -> int:
        """Rows more than were read, by a `weight` over 1."""
        return sum(source["repeated"] for source in self.sources)

    def __iter__(self) -> Iterator[Located]:
        from rlhf.data.blocks import to_rows

        for part in self._parts():
            yield from part if isinstance(part, list) else to_rows(part)

    def blocks(self) -> Iterator[pa.Table]:
        """The rows as blocks (see `blocks`)."""
        from rlhf.data.blocks import to_block

        for part in self._parts():
            yield to_block(part) if isinstance(part, list) else part

    def _parts(self) -> Iterator[list[Located] | pa.Table]:
        """Lists of rows, or blocks, never empty."""
        for number, source in enumerate(self._from):
            yield from self._source(number, source)
        if self._needs_rows and self._from and not any(s["rows_out"] for s in self.sources):
            raise self._nothing()

    def _source(self, number: int, source: SourceSection) -> Iterator[list[Located] | pa.Table]:
        seen, mark = self.quarantine.rows_in, self.quarantine.mark()
        read_rows = rows_out = 0
        report: dict[str, Any] = {"path": source.path, "format": None, "recognised": False, "kind": None}
        self.sources.append(report)
        for part in self._converted(number, source, report):
            if part is None or not (count := len(part)):
                continue
            if report["kind"] is None:
                report["kind"] = kind_of(part[0].data if isinstance(part, list) else dict.fromkeys(part.column_names))
            if source.weight != 1:
                part = self._weigh(part, source.weight, number, read_rows)
            read_rows += count
            rows_out += len(part)
            if len(part):
                yield part
        dropped = self.quarantine.since(mark)
        balance = rows_out - read_rows
        if source.weight < 1:
            dropped[f"not drawn (weight {source.weight:g})"] = -balance
        report |= {
            "rows_in": self.quarantine.rows_in - seen,
            "rows_out": rows_out,
            "repeated": max(balance, 0),
            "dropped": {reason: n for reason, n in dropped.items() if n},
        }
        assert report["rows_in"] + report["repeated"] == rows_out + sum(report["dropped"].values()), report

    def _converted(
        self, number: int, source: SourceSection, report: dict[str, Any]
    ) -> Iterator[list[Located] | pa.Table]:
        """A source's rows before its weight: blocks where its files are tables of plain text, else lists."""
        if not self._keep and (files := table_files(source)):
            from rlhf.data.convert_columns import PLANS

            head = list(islice(read(source, Quarantine()), SAMPLE))
            format = self._format(head, source, report) if head else None
            if format is not None and format in PLANS:
                for file in files:
                    yield from self._table(number, file, format, source)
                return
        raw = read(source, self.quarantine)
        head = list(islice(raw, SAMPLE))
        if head:
            format = self._format(head, source, report)
            if problem := self._keep.problem_with(columns_in(head, source), source.path):
                raise RecipeError(problem)
            for chunk in chunks(chain(head, raw)):
                yield self._rows(number, chunk, format, source)

    def _format(self, head: list[Located], source: SourceSection, report: dict[str, Any]) -> Format:
        format = choose(head, source, self._kinds, self._keep.may_be_mapped(source.columns))
        report |= {"format": format, "recognised": source.format is None}
        return format

    def _table(self, number: int, file: Path, format: Format, source: SourceSection) -> Iterator[Any]:
        """One file's rows: by columns, those in doubt one by one; all of them so where the columns do not allow it."""
        from rlhf.data.blocks import block_of, merge
        from rlhf.data.convert_columns import columns_for, convert_batch
        from rlhf.data.readers.arrow_files import rows_at, table_batches, table_schema

        names = columns_for(format, source, table_schema(file))
        if names is None:
            for chunk in chunks(select(read_file(file, self.quarantine), source, self.quarantine)):
                yield self._rows(number, chunk, format, source)
            return
        start = 1
        for batch in table_batches(file, names):
            done = convert_batch(batch, format, source)
            self.quarantine.rows_in += len(done.rows)
            units = self._unit_array(number, done.columns.get("group"), len(done.rows))
            block = block_of(done.columns, str(file), start + done.rows, units) if len(done.rows) else None
            raw = select(rows_at(batch, done.doubtful.tolist(), file, start, self.quarantine), source, self.quarantine)
            doubtful = self._rows(number, list(raw), format, source)
            yield merge(block, doubtful) if block is not None and doubtful else doubtful or block
            start += batch.num_rows

    def _rows(self, number: int, raw: list[Located], format: Format, source: SourceSection) -> list[Located]:
        rows = []
        for located in raw:
            try:
                data = convert(located, format, source)
            except DataError as error:
                self.quarantine.catch(error)
                continue
            if located.group is None:
                self._units += 1
                unit = self._units
            else:
                unit = _unit_of(number, located.group)
            kept = self._keep.of(named_columns(located.data, source)) if self._keep else None
            rows.append(Located(located.file, located.row, data, unit, located.group, kept))
        return rows

    def _unit_array(self, number: int, groups: pa.Array | None, n: int) -> np.ndarray:
        fresh = np.arange(self._units + 1, self._units + n + 1, dtype=np.int64)
        self._units += n
        if groups is None:
            return fresh
        encoded = groups.dictionary_encode()
        of_value = np.array([_unit_of(number, value) for value in encoded.dictionary.to_pylist()], dtype=np.int64)
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return np.where(codes < 0, fresh, of_value[codes]) if len(of_value) else fresh

    def _weigh(self, part: Any, weight: float, number: int, start: int) -> Any:
        """The rows of a part as often as their weight says: its whole part, and once more for a seeded share of them."""
        n = len(part)
        places = _uniform(np.arange(start, start + n, dtype=np.uint64), self._seed, number)
        times = int(weight) + (places < weight - int(weight))
        index = np.repeat(np.arange(n), times)
        return [part[i] for i in index] if isinstance(part, list) else part.take(index)

    def _nothing(self) -> DataError:
        first = self.quarantine.entries[0] if self.quarantine.entries else None
        most = sorted(self.dropped.items(), key=lambda item: -item[1])[:3]
        why = "; ".join(f"{n} x {reason}" for reason, n in most) or "the files are empty"
        file = first["file"] if first else ", ".join(s.path for s in self._from)
        return DataError(file, f"no usable row: {why}", row=first["row"] if first else None)


def _unit_of(number: int, group: str) -> int:
    """The unit of a source's group: negative, so that it is never that of a row without one."""
    digest = hashlib.blake2b(f"{number}\n{group}".encode(), digest_size=8).digest()
    return -(int.from_bytes(digest, "big") >> 1) - 1


def _uniform(counter: Any, seed: int, number: int) -> Any:
    """A number in [0, 1) for each counter, by splitmix64 (Steele, Lea and Flood 2014): no state, so no order."""
    with np.errstate(over="ignore"):
        x = counter + np.uint64((seed * 1_000_003 + number + 1) % 2**64) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / 2**53
