"""`rlhf data build` at four sizes: map stack-exchange-paired, dedup by question, split; wall time, CPU time and peak memory.

Each size in a process of its own, on rows that `stack_exchange` generates (kept in the folder for the next run).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.stack_exchange import generate

SIZES = (10_000, 100_000, 1_000_000, 7_435_908)
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
    child = [sys.executable, "-m", "benchmarks.build", "--child", str(recipe)]
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


def main(sizes: list[int], folder: Path) -> list[dict[str, Any]]:
    """All sizes, each printed as it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for rows in sizes:
        line = measure(rows, folder)
        found.append(line)
        per_row = line["cpu_s"] / rows * 1e6
        print(
            f"{rows:10,} rows  {line['wall_s']:7.1f} s  {line['cpu_s']:7.1f} CPU s  {per_row:6.1f} us a row  "
            f"{line['peak_mb']:7,.0f} MB  {line['dropped']}",
            flush=True,
        )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/rlhf-benchmark"))
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child:
        _child(arguments.child)
    else:
        main(list(arguments.sizes), arguments.folder)
