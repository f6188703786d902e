"""Rows like stack-exchange-paired in any number: fragments of the real beer and history pairs, put together anew by a seed.

Each question has a `qid` and one to ten pairs, as in the published data; a share of the questions are near-copies of earlier ones (one
fragment changed), so that dedup has work to do. Written as parquet in shards, a shard at a time, so memory does not grow.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

REAL = Path(__file__).parents[1] / "../shared/data/stackexchange"
SHARD = 250_000
COPIES = 0.05  # questions that are near-copies


def fragments() -> pa.Array:
    """Sentences and list items of the real questions and answers, 20 to 200 characters."""
    found: dict[str, None] = {}
    for path in sorted(REAL.glob("*_pairs.jsonl.gz")):
        for line in gzip.decompress(path.read_bytes()).splitlines():
            row = json.loads(line)
            for name in ("question", "response_j", "response_k"):
                for part in re.split(r"(?<=[.!?])\s+|\n+", row[name]):
                    if 20 <= len(part) <= 200:
                        found[part] = None
    if not found:
        raise SystemExit(f"the real pairs are not at hand: {REAL}")
    return pa.array(list(found))


def generate(rows: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Write `rows` rows to parquet files under `folder`; returns how many questions and near-copies they have."""
    pool, rng = fragments(), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"rows": rows, "questions": 0, "near_copies": 0}
    for number, start in enumerate(range(0, rows, SHARD)):
        table = _shard(pool, rng, min(SHARD, rows - start), about)
        pq.write_table(table, folder / f"{number:05}.parquet")
    return about


def _shard(pool: pa.Array, rng: np.random.Generator, rows: int, about: dict[str, Any]) -> pa.Table:
    pairs = np.minimum(rng.geometric(0.28, rows), 10)  # of each question
    questions = int(np.searchsorted(np.cumsum(pairs), rows)) + 1
    of_row = np.repeat(np.arange(questions), pairs[:questions])[:rows]
    texts, copies = _questions(pool, rng, questions)
    qids = np.arange(questions) + about["questions"]
    about["questions"] += questions
    about["near_copies"] += copies
    scores = rng.integers(1, 60, rows)
    return pa.table(
        {
            "qid": pa.array(qids[of_row].astype(str)),
            "question": texts.take(pa.array(of_row)),
            "date": pa.array(["2014/01/21"] * rows),
            "metadata": pa.array([["title", "tag"]] * rows),
            "response_j": _texts(pool, rng, rows, 4, 15),
            "response_k": _texts(pool, rng, rows, 3, 12),
            "pm_score_j": pa.array(scores + 1),
            "pm_score_k": pa.array(scores // 2),
        }
    )


def _questions(pool: pa.Array, rng: np.random.Generator, n: int) -> tuple[pa.Array, int]:
    counts = rng.integers(4, 13, n)
    picked = rng.integers(0, len(pool), counts.sum())
    ends = np.cumsum(counts)
    copies = np.flatnonzero(rng.random(n) < COPIES)
    copies = copies[copies > 0]
    for copy in copies:  # a near-copy takes an earlier question's fragments, all but one
        origin = int(rng.integers(0, copy))
        a, b = ends[origin] - counts[origin], ends[origin]
        c = ends[copy] - counts[copy]
        size = min(b - a, counts[copy])
        picked[c : c + size - 1] = picked[a : a + size - 1]
    return _join(pool, picked, counts), len(copies)


def _texts(pool: pa.Array, rng: np.random.Generator, n: int, low: int, high: int) -> pa.Array:
    counts = rng.integers(low, high, n)
    return _join(pool, rng.integers(0, len(pool), counts.sum()), counts)


def _join(pool: pa.Array, picked: np.ndarray, counts: np.ndarray) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), pool.take(pa.array(picked))), " ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(generate(arguments.rows, arguments.folder, arguments.seed)))
