"""What `build` leaves behind: a side's parquet files, and the table on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.data.blocks import Rows
from rlhf.data.tables import OPTIONAL, ROW_GROUP

FILE_ROWS = 1_000_000


def write_side(folder: Path, rows: Rows) -> None:
    """The rows as parquet files of a million rows, 00000.parquet and on, without the columns that no row uses."""
    names = [name for name in rows.spill.columns if name not in OPTIONAL or name in rows.spill.used]
    folder.mkdir(parents=True)
    waiting: list[pa.Table] = []
    writer: Any = None
    written = files = held = 0

    def flush() -> None:
        nonlocal writer, files, written, held
        if not waiting:
            return
        table = pa.concat_tables(waiting).combine_chunks()
        if writer is None or written >= FILE_ROWS:
            if writer is not None:
                writer.close()
            writer = pq.ParquetWriter(folder / f"{files:05}.parquet", table.schema)
            files, written = files + 1, 0
        writer.write_table(table, row_group_size=ROW_GROUP)
        written += table.num_rows
        waiting.clear()
        held = 0

    for block in rows.blocks(names):
        waiting.append(block.select(names))
        held += block.num_rows
        if held >= ROW_GROUP:
            flush()
    flush()
    if writer is not None:
        writer.close()


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
