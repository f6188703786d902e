"""`rlhf data build`: sources to one folder of rows, with an account of every row on the way.

    output_dir/train/*.parquet, test/*.parquet (after a split)     what later stages and `datasets.load_dataset` read
    output_dir/quarantine.jsonl                                    rows that could not be used: file, row, field, reason
    output_dir/removed.jsonl                                       what dedup and decontaminate removed, each with its witness
    output_dir/report.json                                         rows in, rows out, dropped by reason, source by source and step by step

The rows go through a file (`blocks.Spill`), so memory does not grow with their number. The balance is asserted: sources
and dedup and split have rows_in = rows_out + dropped; `pairs` expands, so it has rankings_in = rankings_with_pairs +
rankings_without_pairs and candidate_pairs = pairs_out + dropped_pairs; and in all, rows_in + expanded = rows_out + dropped. The
folder stays the last build's until the new one is whole (`build_folder.replacing`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.data.blocks import Rows, Spill, to_rows
from rlhf.data.build_folder import refuse_own_rows, replacing, show, write_side
from rlhf.data.load import Stream
from rlhf.data.rankings import pairs_of
from rlhf.data.rows import Located, Quarantine
from rlhf.data.split import split_rows
from rlhf.errors import DataError, RecipeError
from rlhf.recipe.schema import DataRecipe
from rlhf.recipe.steps import DataStep, PairsStep, SplitStep

# carries out a step that data must not know of (see rlhf.synthesis): the step, its number, the rows, where the rows that it makes go,
# the recipe's folder and seed; returns its report, in which rows_in + expanded = rows_out + dropped
ModelSteps = Callable[[DataStep, int, Rows, Spill, Path, int], dict[str, Any]]


def build(recipe: DataRecipe, model_steps: ModelSteps | None = None) -> dict[str, Any]:
    """Run the recipe's sources and steps, write the folder, and return the report.

    `model_steps` carries out the steps that ask models; `rlhf.synthesis.build` brings it along.

    Raises DataError when no row is left, for rows of different kinds, for a step that its rows do not fit, and with `strict` for
    the first row that cannot be used; RecipeError for sources that are this build's own files, and while another build writes there.
    """
    split = _split_of(recipe)
    refuse_own_rows(recipe)
    with replacing(Path(recipe.output_dir)) as (new, scratch):
        with (new / "quarantine.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as sink:
            stream = Stream(recipe.sources, seed=recipe.seed, quarantine=Quarantine(strict=recipe.strict, sink=sink))
            spill = Spill(scratch / "sources")
            for block in stream.blocks():
                spill.add(block)
        rows = Rows.all(spill)
        rows, steps = _steps(recipe, rows, new, scratch, model_steps)
        sides, report = split_rows(rows, split, recipe.seed)
        report = _summary(recipe, stream, spill.kind, rows, sides, [*steps, *([report] if report else [])])
        for side, part in sides.items():
            write_side(new / side, part)
        (new / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    show(report)
    return report


def _split_of(recipe: DataRecipe) -> SplitStep | None:
    """The split, which can only come last: later steps would move rows across it or see one side only."""
    places = [i for i, step in enumerate(recipe.steps) if step.split is not None]
    if places and places != [len(recipe.steps) - 1]:
        raise RecipeError(f"steps.{places[0]}.split: split must be the last step, and there can be one only")
    return recipe.steps[-1].split if places else None


def _steps(
    recipe: DataRecipe, rows: Rows, new: Path, scratch: Path, model_steps: ModelSteps | None
) -> tuple[Rows, list[dict[str, Any]]]:
    """The steps before the split, in order."""
    from rlhf.data.dedup_steps import remove_duplicates, remove_matches

    reports: list[dict[str, Any]] = []
    with (new / "removed.jsonl").open("w", encoding="utf-8") as removed:
        for number, step in enumerate(recipe.steps, 1):
            place = scratch / f"step-{number}"
            if step.pairs is not None:
                rows, report = _pairs(rows, step.pairs, Spill(place), recipe.seed)
            elif step.dedup is not None:
                rows, report = remove_duplicates(rows, step.dedup, place, removed)
            elif step.decontaminate is not None:
                rows, report = remove_matches(rows, step.decontaminate, place, removed, recipe.seed)
            elif step.model_step is not None:
                if model_steps is None:
                    raise RecipeError(
                        f"steps.{number - 1}.{step.name}: is built by rlhf.synthesis.build, or rlhf data build"
                    )
                out = Spill(place)
                report = model_steps(step, number, rows, out, Path(recipe.output_dir), recipe.seed)
                rows = Rows.all(out)
            else:
                break
            reports.append(report)
            if not len(rows):
                raise DataError(recipe.sources[0].path, f"no row is left after step {number}: {json.dumps(report)}")
    if rows.spill.kind == "ranking" and not rows.spill.used & {"ranking", "scores"}:
        raise RecipeError(
            "steps: they end with completions that have no scores; add score or judge after the last that makes some"
        )
    if not any(step.dedup or step.decontaminate for step in recipe.steps):
        (new / "removed.jsonl").unlink()
    return rows, reports


def _pairs(rows: Rows, step: PairsStep, spill: Spill, seed: int) -> tuple[Rows, dict[str, Any]]:
    without: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    candidates = used = 0

    def made() -> Iterator[Located]:
        nonlocal candidates, used
        for row in (row for block in rows.blocks() for row in to_rows(block)):
            try:
                found, pairs = pairs_of(row.data, step, seed)
            except ValueError as e:
                raise row.error(str(e), "scores") from e
            dropped.update(pairs.dropped)
            candidates += pairs.candidates
            used += bool(found)
            if not found:
                without[pairs.dropped.most_common(1)[0][0]] += 1
            yield from (replace(row, data=data) for data in found)

    if rows.spill.kind != "ranking":
        raise rows.first().error(f"the step pairs needs rankings, this is a {rows.spill.kind} row")
    spill.add_rows(made())
    assert candidates == spill.rows + dropped.total()
    return Rows.all(spill), {
        "step": "pairs",
        **step.model_dump(),
        "rankings_in": len(rows),
        "rankings_with_pairs": used,
        "rankings_without_pairs": dict(without),
        "candidate_pairs": candidates,
        "pairs_out": spill.rows,
        "dropped_pairs": dict(dropped),
    }


def _summary(
    recipe: DataRecipe, stream: Stream, kind: str, rows: Rows, sides: dict[str, Rows], steps: list[dict[str, Any]]
) -> dict[str, Any]:
    dropped = Counter(stream.dropped)
    expanded = stream.repeated
    for step in steps:
        if step["step"] == "pairs":
            expanded += step["pairs_out"] - step["rankings_with_pairs"]
            dropped += Counter({f"ranking without pairs: {k}": n for k, n in step["rankings_without_pairs"].items()})
            assert step["rankings_in"] == step["rankings_with_pairs"] + sum(step["rankings_without_pairs"].values())
        else:
            expanded += step.get("expanded", 0)
            dropped += Counter(step["dropped"])
    rows_in, rows_out = stream.rows_in, sum(map(len, sides.values()))
    assert rows_in + expanded == rows_out + dropped.total(), (rows_in, expanded, rows_out, dropped)
    return {
        "output_dir": recipe.output_dir,
        "kind": rows.spill.kind,
        "source_kind": kind,
        "rows_in": rows_in,
        "expanded": expanded,
        "rows_out": rows_out,
        "dropped": dict(dropped),
        "splits": {side: len(part) for side, part in sides.items()},
        "sources": stream.sources,
        "steps": steps,
    }
