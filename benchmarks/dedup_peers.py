"""One dedup tool over one set of documents, in a process of its own: `python -m benchmarks.dedup_peers TOOL FOLDER COUNT`.

Prints one JSON object: CPU seconds (`time.process_time`: all threads, no waiting), peak memory and the documents dropped. Every
tool gets what it takes (`fast` a mapped file, the others a list of str), made before the clock starts, and does the rest on the
clock: normalising, shingling, sketching, deciding. All keep the first of those alike, at 0.8 and 5-shingles of the first 500.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.corpus import stored
from rlhf.data.dedup import Texts, dedup, normalise, shingles
from rlhf.recipe.steps import MatchSection

THRESHOLD, PERMUTATIONS, SIZE, MAX_CHARS = 0.8, 256, 5, 500


def reference(texts: list[str]) -> list[int]:
    """MinHash-LSH with the lab's settings, one `update` for each shingle. A text is inserted unless it finds a kept one.

    The lab's own rule is another: it inserts all texts, then removes every later match of each, also of one that is removed itself.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    dropped = []
    for i, text in enumerate(texts):
        cleaned = "".join(c for c in text[:MAX_CHARS].lower() if c.isalnum())
        signature = MinHash(num_perm=PERMUTATIONS)
        for start in range(len(cleaned) - SIZE + 1):
            signature.update(cleaned[start : start + SIZE].encode("utf8"))
        if index.query(signature):
            dropped.append(i)
        else:
            index.insert(i, signature)
    return dropped


def rensa_c(texts: list[str]) -> list[int]:
    """C-MinHash and its deduplicator, token sets in, keep-first."""
    from rensa import CMinHashDeduplicator

    return _streamed(CMinHashDeduplicator(THRESHOLD, PERMUTATIONS), texts)


def rensa_r(texts: list[str]) -> list[int]:
    """R-MinHash and its deduplicator with LSH, token sets in, keep-first."""
    from rensa import RMinHashDeduplicator

    return _streamed(RMinHashDeduplicator(THRESHOLD, PERMUTATIONS, True), texts)


def rensa_r128(texts: list[str]) -> list[int]:
    """The same with 128 values, rensa's own default, and lists in place of sets: the least work in Python."""
    from rensa import RMinHashDeduplicator

    return _streamed(RMinHashDeduplicator(THRESHOLD, 128, True), texts, listed=True)


def rensa_rho(texts: list[str]) -> list[int]:
    """The rho matrix (it samples tokens) and one-shot LSH: says which are in a group, not which to keep; all but no first."""
    from rensa import RMinHash, RMinHashLSH

    matrix = RMinHash.digest_matrix_from_token_sets_rho((_list(t) for t in texts), 128, 42)
    flags = RMinHashLSH(THRESHOLD, 128, 8).query_duplicate_flags_matrix_one_shot(matrix)
    return [i for i, flag in enumerate(flags) if flag]


def _streamed(deduplicator: Any, texts: list[str], listed: bool = False) -> list[int]:
    made = _list if listed else _set
    kept = deduplicator.add_pairs((str(i), made(t)) for i, t in enumerate(texts))
    return [i for i, stays in enumerate(kept) if not stays]


def _set(text: str) -> set[str]:
    return shingles(normalise(text, MAX_CHARS), SIZE)


def _list(text: str) -> list[str]:
    cleaned = normalise(text, MAX_CHARS)
    return [cleaned[i : i + SIZE] for i in range(len(cleaned) - SIZE + 1)]


def ours(engine: Any) -> Callable[[Any], list[int]]:
    """An engine of this project, with its defaults."""
    return lambda texts: dedup(texts, MatchSection(engine=engine)).index.tolist()


TOOLS: dict[str, Callable[[Any], list[int]]] = {
    "reference": reference,
    "datasketch": ours("datasketch"),
    "rensa C-MinHash": rensa_c,
    "rensa R-MinHash": rensa_r,
    "rensa R-MinHash, 128, lists": rensa_r128,
    "rensa rho (flags)": rensa_rho,
    "exact": ours("exact"),
    "fast": ours("fast"),
}


def measure(tool: str, folder: Path, count: int) -> dict[str, Any]:
    """Run one tool in this process; its first, uncounted run on a few texts compiles and imports what it needs."""
    run, mapped = TOOLS[tool], tool in ("fast", "exact")
    few = ["a first text to warm up", "another text, quite different"]
    run(Texts.of(few) if mapped else few)
    texts = stored(folder, count)
    given = texts if mapped else list(texts)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    dropped = run(given)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "tool": tool,
        "count": count,
        "cpu_s": cpu,
        "wall_s": wall,
        "before_kb": before,
        "peak_kb": peak,
        "dropped": dropped,
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
