"""Mapping stack-exchange-paired to preference rows: rows per CPU second on one core, beside `datasets` doing the same three ways.

The rows (see `stack_exchange`) lie in memory as Arrow, so that what is timed is the mapping and, for ours, all its checks (null, blank,
NUL, Unicode, equal sides); the peers check nothing. "from parquet" adds reading and unpacking the file, the same way for all.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.publish import publish
from benchmarks.stack_exchange import generate
from rlhf.data.convert_columns import convert_batch
from rlhf.data.load import Stream
from rlhf.recipe.sections import SourceSection

ROWS, ROUNDS = 100_000, 5
COLUMNS = ["question", "response_j", "response_k", "qid"]


def measure(rows: int = ROWS, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """One line a way: rows per CPU second, the median of interleaved rounds."""
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        generate(rows, Path(folder))
        file = str(Path(folder) / "00000.parquet")
        ways = dict(_ways(file, pq.read_table(file, columns=COLUMNS, use_threads=False), datasets))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                began = time.process_time()
                way()
                seconds[name].append(time.process_time() - began)
    return [{"way": name, "rows": rows, "rows_per_cpu_s": rows / median(found)} for name, found in seconds.items()]


def _ways(file: str, table: pa.Table, datasets: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    source = SourceSection(path=file, format="stack_exchange_paired")
    batches = table.to_batches(4096)
    plain = datasets.Dataset(table)
    arrow = plain.with_format("arrow")
    gone = table.column_names
    yield "rlhf, from memory", lambda: [convert_batch(b, "stack_exchange_paired", source) for b in batches]
    yield "rlhf, from parquet", lambda: sum(block.num_rows for block in Stream([source]).blocks())
    yield "datasets, a row at a time", lambda: plain.map(_row, remove_columns=gone, keep_in_memory=True)
    yield "datasets, batched", lambda: plain.map(_batch, batched=True, remove_columns=gone, keep_in_memory=True)
    yield "datasets, arrow batches", lambda: arrow.map(_arrow, batched=True, remove_columns=gone, keep_in_memory=True)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    prompt = "Question: " + row["question"] + "\n\nAnswer: "
    return {"prompt": prompt, "chosen": row["response_j"], "rejected": row["response_k"]}


def _batch(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    prompts = ["Question: " + question + "\n\nAnswer: " for question in rows["question"]]
    return {"prompt": prompts, "chosen": rows["response_j"], "rejected": rows["response_k"]}


def _arrow(rows: pa.Table) -> pa.Table:
    prompts = pc.binary_join_element_wise("Question: ", rows["question"], "\n\nAnswer: ", "")
    return pa.table({"prompt": prompts, "chosen": rows["response_j"], "rejected": rows["response_k"]})


def run(rows: int = ROWS, rounds: int = ROUNDS) -> None:
    """Measure, print and write benchmarks/results/mapping.md."""
    found = measure(rows, rounds)
    head = f"Mapping {rows:,} rows like stack-exchange-paired; one thread, median of {rounds} interleaved rounds."
    lines = [f"| {line['way']} | {line['rows_per_cpu_s']:,.0f} |" for line in found]
    publish("mapping", head, ["| way | rows per CPU s |", "|---|---|", *lines], found)
