"""What `build` leaves behind: a folder that is the old build's or the new one's, a side's parquet files, and the table on the terminal.

A build writes into a hidden folder of its own. Once that is whole it is renamed to `COMMIT`, and from there its files take their names:
what is killed in the middle of that is finished by the next build, never thrown away.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.data.blocks import Rows
from rlhf.data.parquet_rows import OPTIONAL, ROW_GROUP, without_extra
from rlhf.data.sources import files_of, is_on_hub
from rlhf.errors import RecipeError
from rlhf.recipe.schema import DataRecipe

FILE_ROWS = 1_000_000
GROUP_BYTES = 1 << 28
OUTPUTS = ("report.json", "train", "test", "quarantine.jsonl", "removed.jsonl")  # the report goes first and comes last
COMMIT = ".built"


def refuse_own_rows(recipe: DataRecipe) -> None:
    """Raises RecipeError where a source is what this very build writes: a second run would read the first one's rows, or lose a split."""
    own = Path(recipe.output_dir).resolve()
    sources = {f"sources.{i}": source for i, source in enumerate(recipe.sources)}
    for number, step in enumerate(recipe.steps):
        against = step.decontaminate.against if step.decontaminate else []
        sources |= {f"steps.{number}.decontaminate.against.{i}": source for i, source in enumerate(against)}
    for key, source in sources.items():
        for file in [] if is_on_hub(source) else map(Path.resolve, files_of(source)):
            if file.is_relative_to(own) and file.relative_to(own).parts[0] in (*OUTPUTS, "status.json"):
                raise RecipeError(
                    f"{key}.path: {source.path} takes in {file}, which is this build's own: give the build another output_dir, "
                    "or the source a narrower path"
                )


@contextmanager
def replacing(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Hidden folders for the new files and for scratch files; when the block ends well the new files take the old ones' place.

    A block that fails, or a process that is killed, leaves the folder as it was, and a folder that was not there before is gone again.
    Raises RecipeError while another process is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _take_names(folder)
        for leftover in folder.glob(".build-*"):  # of a build that was killed: nobody else is at work here
            shutil.rmtree(leftover)
        aside = folder / f".build-{os.getpid()}"
        for part in ("new", "old", "scratch"):
            (aside / part).mkdir(parents=True)
        try:
            yield aside / "new", aside / "scratch"
            aside.rename(folder / COMMIT)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            _take_names(folder)
            if not any(folder.iterdir()):
                folder.rmdir()


def _take_names(folder: Path) -> None:
    """Move the old files out and the new ones in; after an interruption, the rest of that."""
    aside = folder / COMMIT
    if (aside / "old").exists():
        for name in filter(lambda n: (folder / n).exists(), OUTPUTS):
            (folder / name).rename(aside / "old" / name)
        (aside / "old").rename(aside / "gone")
    for name in filter(lambda n: (aside / "new" / n).exists(), reversed(OUTPUTS)):
        (aside / "new" / name).rename(folder / name)
    if aside.exists():
        shutil.rmtree(aside)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time, by a lock on the folder itself, which goes with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(
                f"output_dir: another build is writing into {folder}; wait for it, or choose another"
            ) from None
        yield
    finally:
        os.close(descriptor)


def write_side(folder: Path, rows: Rows) -> None:
    """The rows as parquet files of a million rows, 00000.parquet and on, without the columns that no row uses.

    A row group is `ROW_GROUP` rows, fewer where they are long.
    """
    names = [name for name in rows.spill.columns if name not in OPTIONAL or name in rows.spill.used]
    folder.mkdir(parents=True)
    writer: Any = None
    files = written = 0
    for group in _row_groups(rows, names):
        group = without_extra(group, rows.spill.extra)
        if writer is None or written >= FILE_ROWS:
            if writer is not None:
                writer.close()
            writer = pq.ParquetWriter(folder / f"{files:05}.parquet", group.schema)
            files, written = files + 1, 0
        writer.write_table(group, row_group_size=ROW_GROUP)
        written += group.num_rows
    if writer is not None:
        writer.close()


def _row_groups(rows: Rows, names: list[str]) -> Iterator[pa.Table]:
    """The rows' columns in tables of about one row group each."""
    waiting: list[pa.Table] = []
    for block in rows.blocks(names):
        waiting.append(block.select(names))
        if sum(map(len, waiting)) >= ROW_GROUP or sum(part.nbytes for part in waiting) >= GROUP_BYTES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def show(report: dict[str, Any]) -> None:
    """The report as a table: one line a source, one a step."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column("", overflow="fold"), "rows in", "rows out", Column("dropped", overflow="fold"))
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
