"""Dedup side by side: every tool in fresh processes, interleaved, beside the exact answer. `python -m benchmarks.data dedup`.

Writes dedup.json, dedup.md and dedup.png under benchmarks/results: documents per CPU second, ratios, precision and recall against
the exact greedy result (every pair that could match compared: prefix filtering, Chaudhuri et al. 2006, loses none), peak memory,
and how the time of a row grows with their number.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from datetime import date
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import stored
from benchmarks.dedup_peers import MAX_CHARS, SIZE, THRESHOLD, TOOLS
from benchmarks.publish import RESULTS, machine
from rlhf.data.dedup import Texts, jaccard, normalise, shingles

EXACT_TO = 10_000  # the largest size with precision and recall: all pairs of 100,000 take over twenty minutes
SLOW = ("reference",)  # once a size; it takes minutes


def run(folder: Path, sizes: list[int], peers_to: int, repeats: int) -> None:
    """Measure, then write and print what was found."""
    rows = []
    for count in sizes:
        tools = list(TOOLS) if count <= peers_to else ["fast", "exact"]
        stored(folder, count)
        measured: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
        for repeat in range(repeats):
            for tool in tools:
                if not (repeat and tool in SLOW):
                    measured[tool].append(_measure(tool, folder, count))
                    print(f"{count} {tool}: {count / measured[tool][-1]['cpu_s']:,.0f} docs/s", flush=True)
        expected = exact_greedy(stored(folder, count)) if count <= EXACT_TO else None
        rows += [_row(count, runs, expected) for runs in measured.values()]
    for row in rows:
        beside = {r["tool"]: r["docs_per_cpu_s"] for r in rows if r["count"] == row["count"]}
        row["times_reference"] = row["docs_per_cpu_s"] / beside["reference"] if "reference" in beside else None
    report = {"date": str(date.today()), "machine": machine(), "repeats": repeats, "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "dedup.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "dedup.md").write_text(table(report))
    plot(rows, RESULTS / "dedup.png")
    print(table(report))


def _measure(tool: str, folder: Path, count: int) -> dict[str, Any]:
    one_thread = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.dedup_peers", tool, str(folder), str(count)]
    done = subprocess.run(command, env=os.environ | one_thread, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def _row(count: int, runs: list[dict[str, Any]], expected: set[int] | None) -> dict[str, Any]:
    cpu = statistics.median(r["cpu_s"] for r in runs)
    dropped = set(runs[0]["dropped"])
    assert all(set(r["dropped"]) == dropped for r in runs), f"{runs[0]['tool']} is not deterministic"
    row: dict[str, Any] = {"tool": runs[0]["tool"], "count": count, "cpu_s": cpu, "docs_per_cpu_s": count / cpu}
    row |= {"runs_cpu_s": [r["cpu_s"] for r in runs], "dropped": len(dropped)}
    row |= {"peak_mb": max(r["peak_kb"] for r in runs) // 1024, "before_mb": runs[0]["before_kb"] // 1024}
    if expected is not None and row["tool"] != "exact":
        row |= {"precision": len(dropped & expected) / len(dropped), "recall": len(dropped & expected) / len(expected)}
    return row


def exact_greedy(texts: Texts) -> set[int]:
    """What keep-first by exact similarity drops. Two sets at the threshold share one of each one's rarest few shingles.

    Shingles are Python's 64-bit hashes of strings: independent of the engines, and small enough for 100,000 texts.
    """
    sets = [np.fromiter(map(hash, shingles(normalise(text, MAX_CHARS), SIZE)), np.int64) for text in texts]
    known, seen = np.unique(np.concatenate(sets[:: max(1, len(sets) // 5000)]), return_counts=True)
    kept: dict[int, list[int]] = {}
    dropped = set()
    for index, own in enumerate(sets):
        at = np.minimum(np.searchsorted(known, own), len(known) - 1)
        rarity = np.where(known[at] == own, seen[at], 0)  # any order of all shingles will do
        prefix = own[np.lexsort((own, rarity))[: len(own) - ceil(THRESHOLD * len(own)) + 1]].tolist()
        candidates = {other for s in prefix for other in kept.get(s, ())}
        mine = set(own.tolist()) if candidates else set()
        if any(jaccard(mine, set(sets[other].tolist())) >= THRESHOLD for other in candidates):
            dropped.add(index)
        else:
            for s in prefix:
                kept.setdefault(s, []).append(index)
    return dropped


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"Dedup, {report['date']}, {report['machine']}; documents of 450 to 800 characters, the first {MAX_CHARS} compared;",
        f"one thread, CPU seconds, the median of {report['repeats']} interleaved runs (the reference: one run).",
        "",
        "| documents | tool | docs / CPU s | x reference | precision | recall | dropped | CPU s | peak MB (before) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in report["rows"]:
        ratio = f"{r['times_reference']:.0f}" if r["times_reference"] else ""
        quality = [f"{r[k]:.4f}" if k in r else "" for k in ("precision", "recall")]
        cells = [f"{r['count']:,}", r["tool"], f"{r['docs_per_cpu_s']:,.0f}", ratio, *quality, f"{r['dropped']:,}"]
        lines.append("| " + " | ".join([*cells, f"{r['cpu_s']:.2f}", f"{r['peak_mb']:,} ({r['before_mb']:,})"]) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """CPU microseconds a document against their number, both logarithmic: flat is linear time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for tool in dict.fromkeys(r["tool"] for r in rows):
        own = [r for r in rows if r["tool"] == tool]
        axes.plot([r["count"] for r in own], [1e6 * r["cpu_s"] / r["count"] for r in own], "o-", label=tool)
    axes.set(xscale="log", yscale="log", xlabel="documents", ylabel="CPU µs a document", title="Dedup: time a document")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
