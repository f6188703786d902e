"""`rlhf data build`: sources to one folder of rows, with an account of every row on the way.

    output_dir/train/*.parquet, test/*.parquet (after a split)     what later stages and `datasets.load_dataset` read
    output_dir/quarantine.jsonl                                    rows that could not be used: file, row, field, reason
    output_dir/removed.jsonl                                       what dedup removed, each with its witness
    output_dir/report.json                                         rows in, rows out, dropped by reason, source by source and step by step

The balance is asserted, not hoped for: sources and dedup and split have rows_in = rows_out + dropped; `pairs` expands,
so it has rankings_in = rankings_with_pairs + rankings_without_pairs and candidate_pairs = pairs_out + dropped_pairs; and in
all, rows_in + expanded = rows_out + dropped. Files are written aside and renamed: a failed build leaves the last one's.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.data.dedup import dedup
from rlhf.data.load import Loaded, load
from rlhf.data.rankings import pairs_of
from rlhf.data.rows import Located, kind_of, text_of
from rlhf.data.split import held_out
from rlhf.data.tables import write_rows
from rlhf.errors import DataError, RecipeError
from rlhf.recipe.schema import DataRecipe
from rlhf.recipe.steps import DedupStep, PairsStep, SplitStep

OUTPUTS = ("report.json", "train", "test", "quarantine.jsonl", "removed.jsonl")  # the report goes first and comes last


def build(recipe: DataRecipe) -> dict[str, Any]:
    """Run the recipe's sources and steps, write the folder, and return the report.

    Raises DataError when no row is left, for rows of different kinds, and for a step that its rows do not fit.
    """
    split = _split_of(recipe)
    loaded = load(recipe.sources)
    rows = loaded.rows
    kind = _one_kind(rows)
    steps: list[dict[str, Any]] = []
    removed: list[dict[str, Any]] = []
    for step in recipe.steps:
        if step.pairs is not None:
            rows, report = _pairs(rows, step.pairs)
        elif step.dedup is not None:
            rows, report, gone = _dedup(rows, step.dedup)
            removed += [{"step": len(steps) + 1, **r} for r in gone]
        else:
            break
        steps.append(report)
        if not rows:
            raise DataError(recipe.sources[0].path, f"no row is left after step {len(steps)}: {json.dumps(report)}")
    sides = {"train": rows}
    if split is not None:
        sides, report = _split(rows, split, recipe.seed)
        steps.append(report)
    summary = _summary(recipe, loaded, kind, sides, steps)
    has_dedup = any(s.dedup is not None for s in recipe.steps)
    _write(Path(recipe.output_dir), sides, loaded, removed if has_dedup else None, summary)
    _show(summary)
    return summary


def _split_of(recipe: DataRecipe) -> SplitStep | None:
    """The split, which can only come last: later steps would move rows across it or see one side only."""
    places = [i for i, step in enumerate(recipe.steps) if step.split is not None]
    if places and places != [len(recipe.steps) - 1]:
        raise RecipeError(f"steps.{places[0]}.split: split must be the last step, and there can be one only")
    return recipe.steps[-1].split if places else None


def _one_kind(rows: list[Located]) -> str:
    first = rows[0]
    shapes = [(kind_of(r.data), "messages" if isinstance(r.data["prompt"], list) else "text") for r in rows]
    for row, shape in zip(rows, shapes, strict=True):
        if shape != shapes[0]:
            a, b = (f"{kind} rows of {form}" for kind, form in (shapes[0], shape))
            raise row.error(f"one folder holds rows of one kind: {first.file} has {a}, this is one of the {b}")
    return shapes[0][0]


def _pairs(rows: list[Located], step: PairsStep) -> tuple[list[Located], dict[str, Any]]:
    out: list[Located] = []
    without: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    candidates = 0
    for row in rows:
        if kind_of(row.data) != "ranking":
            raise row.error(f"the step pairs needs rankings, this is a {kind_of(row.data)} row")
        try:
            made, pairs = pairs_of(row.data, step)
        except ValueError as e:
            raise row.error(str(e), "scores") from e
        out += [replace(row, data=data) for data in made]
        dropped += pairs.dropped
        candidates += pairs.candidates
        if not made:
            without[pairs.dropped.most_common(1)[0][0]] += 1
    assert candidates == len(out) + dropped.total()
    return out, {
        "step": "pairs",
        **step.model_dump(),
        "rankings_in": len(rows),
        "rankings_with_pairs": len({r.serial for r in out}),
        "rankings_without_pairs": dict(without),
        "candidate_pairs": candidates,
        "pairs_out": len(out),
        "dropped_pairs": dict(dropped),
    }


def _dedup(rows: list[Located], step: DedupStep) -> tuple[list[Located], dict[str, Any], list[dict[str, Any]]]:
    """Pairs made of one ranking share its prompt: such rows count as one text, and stay or go together."""
    units: dict[tuple[int, str], list[Located]] = {}
    for row in rows:
        if step.column not in row.data:
            raise row.error(f"dedup.column: no such column; these rows have {', '.join(row.data)}", step.column)
        units.setdefault((row.serial, _flat(row.data[step.column])), []).append(row)
    members = list(units.values())
    removals = {r.index: r for r in dedup([text for _, text in units], step)}
    gone = [
        {
            "file": row.file,
            "row": row.row,
            "column": step.column,
            "engine": step.engine,
            "witness": {"file": members[r.witness][0].file, "row": members[r.witness][0].row},
            "similarity": r.similarity,
            "jaccard": r.jaccard,
        }
        for r in removals.values()
        for row in members[r.index]
    ]
    dropped = {id(row) for index in removals for row in members[index]}
    kept = [row for row in rows if id(row) not in dropped]
    assert len(rows) == len(kept) + len(gone)
    counts = {"duplicate": len(gone)} if gone else {}
    report = {"step": "dedup", **step.model_dump(), "rows_in": len(rows), "rows_out": len(kept), "dropped": counts}
    return kept, report, gone


def _split(rows: list[Located], step: SplitStep, seed: int) -> tuple[dict[str, list[Located]], dict[str, Any]]:
    for row in rows:
        if step.by not in row.data:
            raise row.error(f"split.by: no such column; these rows have {', '.join(row.data)}", step.by)
    keys = [_flat(row.data[step.by]) for row in rows]
    test = held_out(keys, step.test, seed)
    sides = {
        "train": [row for row, key in zip(rows, keys, strict=True) if key not in test],
        "test": [row for row, key in zip(rows, keys, strict=True) if key in test],
    }
    counts = {side: len(part) for side, part in sides.items()}
    assert sum(counts.values()) == len(rows)
    report = {"step": "split", "share": step.test, "by": step.by, "rows_in": len(rows), "rows_out": len(rows)}
    return sides, report | {"dropped": {}, **counts}


def _flat(value: Any) -> str:
    """A column's value as one text: text, messages, or a list of either."""
    if isinstance(value, list) and not (value and isinstance(value[0], dict)):
        return "\n".join(map(_flat, value))
    return text_of(value) if isinstance(value, str | list) else str(value)


def _summary(
    recipe: DataRecipe, loaded: Loaded, kind: str, sides: dict[str, list[Located]], steps: list[dict[str, Any]]
) -> dict[str, Any]:
    dropped = Counter(loaded.dropped)
    expanded = 0
    for step in steps:
        if step["step"] == "pairs":
            expanded += step["pairs_out"] - step["rankings_with_pairs"]
            dropped += Counter({f"ranking without pairs: {k}": n for k, n in step["rankings_without_pairs"].items()})
            assert step["rankings_in"] == step["rankings_with_pairs"] + sum(step["rankings_without_pairs"].values())
        else:
            dropped += Counter(step["dropped"])
    rows_in, rows_out = loaded.quarantine.rows_in, sum(map(len, sides.values()))
    assert rows_in + expanded == rows_out + dropped.total(), (rows_in, expanded, rows_out, dropped)
    return {
        "output_dir": recipe.output_dir,
        "kind": kind_of(sides["train"][0].data),
        "source_kind": kind,
        "rows_in": rows_in,
        "expanded": expanded,
        "rows_out": rows_out,
        "dropped": dict(dropped),
        "splits": {side: len(rows) for side, rows in sides.items()},
        "sources": loaded.sources,
        "steps": steps,
    }


def _write(
    folder: Path,
    sides: dict[str, list[Located]],
    loaded: Loaded,
    removed: list[dict[str, Any]] | None,
    report: dict[str, Any],
) -> None:
    """All files into a hidden folder first; then the old ones go and the new ones take their names, the report last."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".build-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    new, old = aside / "new", aside / "old"
    old.mkdir(parents=True)
    try:
        for side, rows in sides.items():
            write_rows(new / side / "00000.parquet", [row.data for row in rows])
        _write_lines(new / "quarantine.jsonl", loaded.quarantine.entries)
        if removed is not None:
            _write_lines(new / "removed.jsonl", removed)
        (new / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for name in filter(lambda n: (folder / n).exists(), OUTPUTS):
            (folder / name).rename(old / name)
        for name in filter(lambda n: (new / n).exists(), reversed(OUTPUTS)):
            (new / name).rename(folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    lines = (json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") for entry in entries)
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "rows in", "rows out", "dropped")
    for source in report["sources"]:
        name = f"{source['path']} ({source['format']}{', recognised' if source['recognised'] else ''})"
        table.add_row(escape(name), str(source["rows_in"]), str(source["rows_out"]), _counts(source["dropped"]))
    for step in report["steps"]:
        if step["step"] == "pairs":
            lost = _counts(step["dropped_pairs"])
            table.add_row("pairs", f"{step['rankings_in']} rankings", f"{step['pairs_out']} pairs", lost)
        else:
            shown = f"{step['train']} train, {step['test']} test" if step["step"] == "split" else str(step["rows_out"])
            table.add_row(step["step"], str(step["rows_in"]), shown, _counts(step["dropped"]))
    Console().print(table)


def _counts(counts: dict[str, int]) -> str:
    return "\n".join(f"{n} {reason}" for reason, n in counts.items())
