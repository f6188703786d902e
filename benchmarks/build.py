"""`rlhf data build` at four sizes: map stack-exchange-paired, dedup by question, split; wall time, CPU time and peak memory.

Each size in a process of its own, on rows that `stack_exchange` generates (kept in the folder for the next run).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.publish import publish
from benchmarks.stack_exchange import generate

RECIPE = """
method: data
output_dir: {out}
sources: [{{path: "{rows}/*.parquet", format: stack_exchange_paired}}]
steps:
  - dedup: {{column: prompt}}
  - split: {{test: 0.01, by: prompt}}
"""


def measure(rows: int, folder: Path) -> dict[str, Any]:
    """One build: seconds, and the peak of the process's memory (resident, mapped files included)."""
    source, out, recipe = folder / f"rows-{rows}", folder / f"built-{rows}", folder / f"{rows}.yaml"
    if not source.exists():
        generate(rows, source)
    recipe.write_text(RECIPE.format(out=out, rows=source))
    child = [sys.executable, "-m", "benchmarks.build", str(recipe)]
    began = time.perf_counter()
    said = subprocess.run(child, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    wall = time.perf_counter() - began
    report = json.loads((out / "report.json").read_text())
    used = json.loads(said.stdout.splitlines()[-1])
    return {"rows": rows, "wall_s": wall, **used, "dropped": report["dropped"], "splits": report["splits"]}


def _child(recipe: str) -> None:
    from rlhf import run

    run(recipe)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}))


def run(sizes: list[int], folder: Path) -> None:
    """Measure all sizes, print and write benchmarks/results/build.md."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [measure(rows, folder.resolve()) for rows in sizes]
    lines = ["| rows | s | CPU s | us a row | peak MB | rows out | dropped |", "|---|---|---|---|---|---|---|"]
    for line in found:
        rows, cpu, out, dropped = (
            line["rows"],
            line["cpu_s"],
            sum(line["splits"].values()),
            sum(line["dropped"].values()),
        )
        lines.append(
            f"| {rows:,} | {line['wall_s']:.1f} | {cpu:.1f} | {cpu / rows * 1e6:.1f} | {line['peak_mb']:,.0f} "
            f"| {out:,} | {dropped:,} |"
        )
    head = "`rlhf data build` of rows like stack-exchange-paired in parquet: map, dedup by question (fast), split; a process each."
    publish("build", head, lines, found)


if __name__ == "__main__":
    _child(sys.argv[1])
