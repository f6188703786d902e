"""Which script a text is written in: Latin, Hangul, Han, Kana, Cyrillic, ..., mixed, or none.

Only letters and their Unicode blocks decide: a table gives the script of each code point. Han letters beside Kana count as Kana, and beside
Hangul as Hangul, since Japanese and Korean use Han too. The result is a script, not a language: French and English are both Latin.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rlhf.data.stats.chunk import Chunk, Tally
from rlhf.data.stats.numbers import shares

MIXED, NONE, OTHER = "mixed", "none", "other"
DOMINANT = 0.8  # the share of a text's letters that one script needs; the rest may be English terms and names

# First and last code point of each block of a script. Only the letters in it count.
BLOCKS: tuple[tuple[int, int, str], ...] = (
    (0x0041, 0x02B8, "Latin"),
    (0x0370, 0x03FF, "Greek"),
    (0x0400, 0x052F, "Cyrillic"),
    (0x0530, 0x058F, "Armenian"),
    (0x0590, 0x05FF, "Hebrew"),
    (0x0600, 0x06FF, "Arabic"),
    (0x0750, 0x077F, "Arabic"),
    (0x0860, 0x08FF, "Arabic"),
    (0x0900, 0x097F, "Devanagari"),
    (0x0980, 0x09FF, "Bengali"),
    (0x0A00, 0x0A7F, "Gurmukhi"),
    (0x0A80, 0x0AFF, "Gujarati"),
    (0x0B00, 0x0B7F, "Oriya"),
    (0x0B80, 0x0BFF, "Tamil"),
    (0x0C00, 0x0C7F, "Telugu"),
    (0x0C80, 0x0CFF, "Kannada"),
    (0x0D00, 0x0D7F, "Malayalam"),
    (0x0D80, 0x0DFF, "Sinhala"),
    (0x0E00, 0x0E7F, "Thai"),
    (0x0E80, 0x0EFF, "Lao"),
    (0x0F00, 0x0FFF, "Tibetan"),
    (0x1000, 0x109F, "Myanmar"),
    (0x10A0, 0x10FF, "Georgian"),
    (0x1100, 0x11FF, "Hangul"),
    (0x1200, 0x139F, "Ethiopic"),
    (0x1780, 0x17FF, "Khmer"),
    (0x1800, 0x18AF, "Mongolian"),
    (0x1C80, 0x1C8F, "Cyrillic"),
    (0x1E00, 0x1EFF, "Latin"),
    (0x1F00, 0x1FFF, "Greek"),
    (0x2C60, 0x2C7F, "Latin"),
    (0x2E80, 0x2FDF, "Han"),
    (0x3005, 0x3007, "Han"),
    (0x3041, 0x30FF, "Kana"),
    (0x3130, 0x318F, "Hangul"),
    (0x31F0, 0x31FF, "Kana"),
    (0x3400, 0x4DBF, "Han"),
    (0x4E00, 0x9FFF, "Han"),
    (0xA640, 0xA69F, "Cyrillic"),
    (0xA720, 0xA7FF, "Latin"),
    (0xA960, 0xA97F, "Hangul"),
    (0xAB30, 0xAB6F, "Latin"),
    (0xAC00, 0xD7FF, "Hangul"),
    (0xF900, 0xFAFF, "Han"),
    (0xFB00, 0xFB06, "Latin"),
    (0xFB1D, 0xFB4F, "Hebrew"),
    (0xFB50, 0xFDFF, "Arabic"),
    (0xFE70, 0xFEFE, "Arabic"),
    (0xFF21, 0xFF5A, "Latin"),
    (0xFF66, 0xFF9F, "Kana"),
    (0xFFA0, 0xFFDC, "Hangul"),
    (0x20000, 0x3FFFF, "Han"),
)
NAMES = (NONE, OTHER, *dict.fromkeys(name for *_, name in BLOCKS))
_LETTER = re.compile("[A-Za-z]")
_WESTERN = re.compile(r"[^\W\d_]")


@cache
def _table() -> npt.NDArray[np.uint8]:
    """The script's number for each code point: 0 if it is no letter, 1 if it is a letter of a script that is not listed."""
    table = np.zeros(0x110000, dtype=np.uint8)
    # the planes above 0x1FFFF hold Han, and no other letters
    letters = [c for c in range(0x20000) if unicodedata.category(chr(c))[0] == "L"]
    table[letters] = NAMES.index(OTHER)
    is_letter = table > 0
    is_letter[0x20000:0x40000] = True
    for first, last, name in BLOCKS:
        block = slice(first, last + 1)
        table[block][is_letter[block]] = NAMES.index(name)
    return table


def scripts_of(texts: Sequence[str]) -> list[str]:
    """The script of each text: the one of at least `DOMINANT` of its letters, else `mixed`; `none` without a letter."""
    out = [_simple(text) for text in texts]
    wide = [i for i, script in enumerate(out) if script is None]
    if wide:
        codes = np.frombuffer("".join(texts[i] for i in wide).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        classes = _table()[codes]
        often = np.bincount(classes, minlength=len(NAMES))
        there = [int(k) for k in np.argsort(-often, kind="stable") if often[k] and k != NAMES.index(NONE)]
        letters, start = classes.tobytes(), 0
        for i in wide:
            out[i] = _dominant(letters[start : start + len(texts[i])], there)
            start += len(texts[i])
    return [script or NONE for script in out]


def _simple(text: str) -> str | None:
    """The script of a text that has only Western characters and signs (no table is needed); None for other texts."""
    if not text.isascii():
        try:
            text.encode("cp1252")
        except UnicodeEncodeError:
            return None
        return "Latin" if _WESTERN.search(text) else NONE
    return "Latin" if _LETTER.search(text) else NONE


def _dominant(classes: bytes, there: Sequence[int]) -> str:
    """The script of a text from the script numbers of its characters. Only those in `there` may occur; the most frequent come first."""
    letters = len(classes) - classes.count(NAMES.index(NONE))
    if not letters:
        return NONE
    counts: dict[str, int] = {}
    for k in there:
        counts[NAMES[k]] = n = classes.count(k)
        if n >= DOMINANT * letters and NAMES[k] != "Han":
            return NAMES[k]
    for name in ("Kana", "Hangul"):
        if counts.get(name):
            counts[name] += counts.pop("Han", 0)
            break
    name = max(counts, key=lambda k: counts[k])
    return name if counts[name] >= DOMINANT * letters else MIXED


class Scripts:
    """Scripts of prompts and completions, and the rows whose completion is in another script than their prompt."""

    def __init__(self) -> None:
        self._prompts: Counter[str] = Counter()
        self._completions: Counter[str] = Counter()
        self._across: Counter[str] = Counter()
        self._different = Tally()

    def add(self, chunk: Chunk) -> None:
        flat = [text for completions in chunk.completions for text in completions]
        found = iter(scripts_of([*chunk.prompts, *flat]))
        prompts = [next(found) for _ in chunk.prompts]
        self._prompts.update(prompts)
        for row, prompt, completions in zip(chunk.rows, prompts, chunk.completions, strict=True):
            theirs = [next(found) for _ in completions]
            self._completions.update(theirs)
            other = {s for s in theirs if s != prompt and s not in (MIXED, NONE)}
            if other and prompt not in (MIXED, NONE):
                self._different.add(row)
                self._across.update(f"{prompt} to {s}" for s in sorted(other))

    def report(self) -> dict[str, Any]:
        """{prompts, completions: shares by script; different: rows whose prompt and some completion differ}."""
        return {
            "prompts": shares(self._prompts),
            "completions": shares(self._completions),
            "different": self._different.report() | {"by": dict(self._across.most_common())},
        }
