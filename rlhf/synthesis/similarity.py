"""Edit similarity of two texts, for `selecting`: 1 - distance / length of the longer text, in characters (code points).

The distance is Levenshtein's. It is computed by Myers' bit-parallel algorithm (1999) in Hyyrö's form (2001), on Python's
integers, which can have any length. Each character of the longer text is one step: a few operations on numbers that have one bit
for each character of the shorter text.
"""

from __future__ import annotations


def similarity(a: str, b: str) -> float:
    """1 for equal texts, 0 if every character would have to be replaced."""
    longer = max(len(a), len(b))
    return 1.0 - distance(a, b) / longer if longer else 1.0


def distance(a: str, b: str) -> int:
    """The fewest insertions, deletions and replacements of characters that turn one text into the other."""
    if len(a) > len(b):
        a, b = b, a
    if not a:
        return len(b)
    positions: dict[str, int] = {}  # of each character in the shorter text, as bits
    for i, character in enumerate(a):
        positions[character] = positions.get(character, 0) | 1 << i
    mask, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, score = mask, 0, len(a)  # bits: where a column of the table goes up and down; its lowest entry
    for character in b:
        match = positions.get(character, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        rises, falls = down | (mask & ~(diagonal | up)), up & diagonal
        score += bool(rises & last) - bool(falls & last)
        rises = (rises << 1) | 1
        up = mask & ((falls << 1) | ~(diagonal | rises))
        down = mask & rises & diagonal
    return score
