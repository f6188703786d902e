"""The steps `dedup` and `decontaminate` over rows on disk: which texts to compare, and what their matches mean for the rows.

Stands between `build` and the engines of `dedup`, which see only texts. A unit is the pairs of one ranking, or the rows of one group. Rows
of one unit with the same text in the column count as one text, and stay or go together: the pairs of a question are not duplicates of
each other. Memory holds 64-bit keys and the engine's own tables; the texts are in a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlhf.data.blocks import Mask, Rows, texts_of, to_rows
from rlhf.data.dedup import Removals, TextWriter, dedup
from rlhf.data.load import Stream
from rlhf.data.origins import Origins
from rlhf.recipe.steps import DecontaminateStep, DedupStep, MatchSection

SHOWN = 160  # characters of a text in the file of removed rows

Ints = np.ndarray[Any, np.dtype[np.int64]]
Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Units:
    """The texts to compare: `first` [rows] marks the row that stands for each unit, `of_row` [rows] says which unit it is."""

    first: Mask
    of_row: Ints

    def __len__(self) -> int:
        return int(self.first.sum())


class Compared:
    """The texts that a step compares, and where each came from. The texts go to a file, so memory holds 12 bytes for each."""

    def __init__(self, step: MatchSection, scratch: Path) -> None:
        self._columns = step.column
        self._writer = TextWriter(scratch, None if step.engine == "exact" else step.max_chars)
        self._files: dict[str, int] = {}
        self._file_of: list[Ints] = []
        self._row_of: list[Ints] = []

    def add(self, block: pa.Table) -> None:
        """Each row of the block is one text."""
        self._writer.write(_joined(block, self._columns))
        encoded = block.column("_file").combine_chunks()
        codes = np.array([self._files.setdefault(n, len(self._files)) for n in encoded.dictionary.to_pylist()])
        self._file_of.append(codes[encoded.indices.to_numpy()].astype(np.int32))
        self._row_of.append(block.column("_row").to_numpy())

    def add_units(self, rows: Rows, units: Units) -> None:
        """Each unit is one text: that of its first row."""
        for block, first in _beside(rows.blocks(self._columns), units.first):
            if first.any():
                self.add(block.filter(pa.array(first)))

    def done(self) -> Self:
        """Afterwards `texts` and `origins` are there."""
        self.texts = self._writer.close()
        self.origins = Origins(list(self._files), np.concatenate(self._file_of), np.concatenate(self._row_of))
        return self


def remove_duplicates(rows: Rows, step: DedupStep, scratch: Path, removed: TextIO) -> tuple[Rows, dict[str, Any]]:
    """The rows without near-duplicates, and the step's report. Each row that goes is written to `removed`, with its witness."""
    units = _prepare(rows, step, "dedup")
    compared = Compared(step, scratch)
    compared.add_units(rows, units)
    found = dedup(compared.done().texts, step, order=_order(rows, units, step))
    return _apply(rows, units, found, compared, step, "dedup", removed)


def remove_matches(
    rows: Rows, step: DecontaminateStep, scratch: Path, removed: TextIO, seed: int
) -> tuple[Rows, dict[str, Any]]:
    """The rows without near-duplicates of a row of `step.against`, and the step's report."""
    units = _prepare(rows, step, "decontaminate")
    compared = Compared(step, scratch)
    stream = Stream(step.against, seed=seed)
    reference = 0
    for block in stream.blocks():
        for name in step.column:
            if name not in block.column_names:
                there = ", ".join(block.column_names[:-3])
                reason = f"decontaminate.column: no such column; the rows of against have {there}"
                raise next(to_rows(block.slice(0, 1))).error(reason, name)
        compared.add(block)
        reference += block.num_rows
    compared.add_units(rows, units)
    found = dedup(compared.done().texts, step, reference=reference)
    rows, report = _apply(rows, units, found, compared, step, "decontaminate", removed)
    return rows, report | {"against": stream.sources}


def _beside(blocks: Iterable[pa.Table], values: Values) -> Iterator[tuple[pa.Table, Values]]:
    """Each block with its part of `values`, which has one value for each row of all blocks."""
    start = 0
    for block in blocks:
        yield block, values[start : start + block.num_rows]
        start += block.num_rows


def _prepare(rows: Rows, step: MatchSection, key: str) -> Units:
    for name in step.column:
        rows.needs(name, f"{key}.column")
    n = len(rows)
    keys = rows.column("_unit")
    if len(np.unique(keys)) < n:
        for block, part in _beside(rows.blocks(step.column), keys):
            texts = _joined(block, step.column).to_pylist()
            part[:] = [hash(pair) for pair in zip(part.tolist(), texts, strict=True)]
    _, first, of_row = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))  # units in the order in which they first come
    mask = np.zeros(n, dtype=bool)
    mask[first] = True
    return Units(mask, rank[of_row])


def _joined(block: pa.Table, columns: Sequence[str]) -> pa.ChunkedArray:
    parts = [texts_of(block.column(name)) for name in columns]
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "\n")


def _order(rows: Rows, units: Units, step: DedupStep) -> Ints | None:
    """The order in which units are considered: the first match stays."""
    if step.keep == "first":
        return None
    if step.keep == "longest":
        lengths = [pc.utf8_length(_joined(block, step.column)).to_numpy() for block in rows.blocks(step.column)]
        values = np.concatenate(lengths).astype(np.float64)
    else:
        name = str(step.best_by)
        rows.needs(name, "dedup.best_by")
        values = rows.column(name)
        if values.dtype.kind not in "fiu" or np.isnan(values.astype(np.float64)).any():
            raise rows.first().error(f"dedup.best_by: {name} must be a number in every row", name)
    best = np.full(len(units), -np.inf)
    np.maximum.at(best, units.of_row, values)
    return np.argsort(-best, kind="stable")


def _apply(
    rows: Rows, units: Units, found: Removals, compared: Compared, step: MatchSection, name: str, removed: TextIO
) -> tuple[Rows, dict[str, Any]]:
    """What the engine found about units, done to their rows."""
    texts, origins = compared.texts, compared.origins
    removal = np.full(len(units), -1, dtype=np.int64)
    removal[found.index - (len(texts) - len(units))] = np.arange(
        len(found)
    )  # the texts of `against` come before the units
    of_row = removal[units.of_row]
    gone = of_row >= 0
    for block, part in _beside(rows.blocks([]), of_row):
        block, part = block.filter(pa.array(part >= 0)), part[part >= 0]
        names = block.column("_file").to_pylist(), block.column("_row").to_pylist()
        for file, row, index in zip(*names, part.tolist(), strict=True):
            witness = int(found.witness[index])
            origin = origins[witness]
            entry = {
                "step": name,
                "file": file,
                "row": row,
                "column": step.column,
                "engine": step.engine,
                "similarity": round(float(found.similarity[index]), 6),
                "jaccard": round(float(found.jaccard[index]), 6),
                "text": texts[int(found.index[index])][:SHOWN],
                "witness": {"file": origin.file, "row": origin.row, "text": texts[witness][:SHOWN]},
            }
            removed.write(json.dumps(entry, ensure_ascii=False) + "\n")
    left = rows.without(gone)
    counts = {"duplicate" if name == "dedup" else "match of against": int(gone.sum())} if gone.any() else {}
    settings = step.model_dump(exclude={"against"})
    report = {"step": name, **settings, "texts": len(units), "rows_in": len(rows), "rows_out": len(left)}
    assert len(rows) == len(left) + int(gone.sum())
    return left, report | {"dropped": counts}
