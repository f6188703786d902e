"""The steps `dedup` and `decontaminate` over rows on disk: which texts to compare, and what their matches mean for the rows.

Stands between `build` and the engines of `dedup`, which see texts only. Rows that share a unit (the pairs of one ranking, the rows of one
group) and the column's text count as one text, and stay or go together: the pairs of a question are no duplicates of each other.
Only keys of 64 bits and the engine's own tables are in memory; the texts lie in a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlhf.data.blocks import Mask, Rows, texts_of
from rlhf.data.dedup import Removals, Texts, TextWriter, dedup
from rlhf.data.load import Stream
from rlhf.errors import DataError
from rlhf.recipe.steps import DecontaminateStep, DedupStep, MatchSection

SHOWN = 160  # characters of a text in the file of removed rows

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Units:
    """The texts to compare: `first` [rows] marks the row that stands for each unit, `of_row` [rows] says which unit it is."""

    first: Mask
    of_row: Ints

    def __len__(self) -> int:
        return int(self.first.sum())


class UnitPlaces:
    """(file, row) of many rows in little memory."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._names: list[str] = []
        self._codes: list[Ints] = []
        self._rows: list[Ints] = []

    def add(self, block: pa.Table) -> None:
        encoded = block.column("_file").combine_chunks()
        codes = np.array([self._files.setdefault(n, len(self._files)) for n in encoded.dictionary.to_pylist()])
        self._codes.append(codes[encoded.indices.to_numpy()].astype(np.int32))
        self._rows.append(block.column("_row").to_numpy())

    def done(self) -> UnitPlaces:
        self._names = list(self._files)
        self._codes, self._rows = [np.concatenate(self._codes)], [np.concatenate(self._rows)]
        return self

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"file": self._names[self._codes[0][index]], "row": int(self._rows[0][index])}


def remove_duplicates(rows: Rows, step: DedupStep, scratch: Path, removed: TextIO) -> tuple[Rows, dict[str, Any]]:
    """The rows without near-duplicates, and the step's report; what goes is written to `removed`, each with its witness."""
    units = _prepare(rows, step, "dedup")
    texts, places = _texts(rows, units, step, scratch, UnitPlaces(), "dedup")
    found = dedup(texts, step, order=_order(rows, units, step))
    return _apply(rows, units, found, texts, places.done(), 0, step, "dedup", removed)


def remove_matches(
    rows: Rows, step: DecontaminateStep, scratch: Path, removed: TextIO, seed: int
) -> tuple[Rows, dict[str, Any]]:
    """The rows without near-duplicates of a row of `step.against`, and the step's report."""
    units = _prepare(rows, step, "decontaminate")
    places = UnitPlaces()
    stream = Stream(step.against, seed=seed)
    writer = TextWriter(scratch, None if step.engine == "exact" else step.max_chars)
    reference = 0
    for block in stream.blocks():
        for name in step.column:
            if name not in block.column_names:
                what = f"decontaminate.column: no such column; the rows of against have {', '.join(block.column_names[:-3])}"
                raise DataError(block.column("_file")[0].as_py(), what, row=block.column("_row")[0].as_py(), field=name)
        writer.write(_joined(block, step.column))
        places.add(block)
        reference += block.num_rows
    texts, places = _texts(rows, units, step, scratch, places, "decontaminate", writer)
    found = dedup(texts, step, reference=reference)
    rows, report = _apply(rows, units, found, texts, places.done(), reference, step, "decontaminate", removed)
    return rows, report | {"against": stream.sources}


def _prepare(rows: Rows, step: MatchSection, key: str) -> Units:
    for name in step.column:
        rows.needs(name, f"{key}.column")
    n = len(rows)
    keys = rows.column("_unit")
    if len(np.unique(keys)) < n:
        start = 0
        for block in rows.blocks(step.column):
            texts = _joined(block, step.column).to_pylist()
            part = keys[start : start + len(texts)]
            keys[start : start + len(texts)] = [hash(pair) for pair in zip(part.tolist(), texts, strict=True)]
            start += len(texts)
    _, first, of_row = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))  # units in the order in which they first come
    mask = np.zeros(n, dtype=bool)
    mask[first] = True
    return Units(mask, rank[of_row])


def _texts(
    rows: Rows,
    units: Units,
    step: MatchSection,
    scratch: Path,
    places: UnitPlaces,
    key: str,
    writer: TextWriter | None = None,
) -> tuple[Texts, UnitPlaces]:
    writer = writer or TextWriter(scratch, None if step.engine == "exact" else step.max_chars)
    start = 0
    for block in rows.blocks(step.column):
        first = pa.array(units.first[start : start + block.num_rows])
        start += block.num_rows
        block = block.filter(first)
        if block.num_rows:
            writer.write(_joined(block, step.column))
            places.add(block)
    return writer.close(), places


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
    rows: Rows,
    units: Units,
    found: Removals,
    texts: Texts,
    places: UnitPlaces,
    reference: int,
    step: MatchSection,
    name: str,
    removed: TextIO,
) -> tuple[Rows, dict[str, Any]]:
    """What the engine found about units, done to their rows. Texts and places are numbered from the reference's on."""
    removal = np.full(len(units), -1, dtype=np.int64)
    removal[found.index - reference] = np.arange(len(found))
    of_row = removal[units.of_row]
    gone = of_row >= 0
    for row, index in zip(_gone_rows(rows, gone), of_row[gone].tolist(), strict=True):
        witness = int(found.witness[index])
        entry = {
            "step": name,
            **row,
            "column": step.column,
            "engine": step.engine,
            "similarity": round(float(found.similarity[index]), 6),
            "jaccard": round(float(found.jaccard[index]), 6),
            "text": texts[int(found.index[index])][:SHOWN],
            "witness": {**places[witness], "text": texts[witness][:SHOWN]},
        }
        removed.write(json.dumps(entry, ensure_ascii=False) + "\n")
    left = rows.without(gone)
    counts = {"duplicate" if name == "dedup" else "match of against": int(gone.sum())} if gone.any() else {}
    settings = step.model_dump(exclude={"against"})
    report = {"step": name, **settings, "texts": len(units), "rows_in": len(rows), "rows_out": len(left)}
    assert len(rows) == len(left) + int(gone.sum())
    return left, report | {"dropped": counts}


def _gone_rows(rows: Rows, gone: Mask) -> Iterator[dict[str, Any]]:
    start = 0
    for block in rows.blocks([]):
        part = block.filter(pa.array(gone[start : start + block.num_rows]))
        start += block.num_rows
        for file, row in zip(part.column("_file").to_pylist(), part.column("_row").to_pylist(), strict=True):
            yield {"file": file, "row": row}
