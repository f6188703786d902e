"""Edit similarity of two texts, for `selection`: 1 - distance / length of the longer one, in characters (code points).

Levenshtein's distance by Myers' bit-parallel algorithm (1999), in Hyyrö's form (2001), on Python's integers of any length: one step a
character of the longer text, each a few operations on a number with a bit for every character of the shorter.
"""

from __future__ import annotations


def similarity(a: str, b: str) -> float:
    """1 for equal texts, 0 for texts of which every character would have to be replaced."""
    longer = max(len(a), len(b))
    return 1.0 - distance(a, b) / longer if longer else 1.0


def distance(a: str, b: str) -> int:
    """The fewest insertions, deletions and replacements of characters that turn one text into the other."""
    if len(a) > len(b):
        a, b = b, a
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for i, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << i
    mask, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, score = mask, 0, len(a)  # where a column of the table rises and falls, and its lowest entry
    for character in b:
        match = places.get(character, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        rises, falls = down | (mask & ~(diagonal | up)), up & diagonal
        score += bool(rises & last) - bool(falls & last)
        rises = (rises << 1) | 1
        up = mask & ((falls << 1) | ~(diagonal | rises))
        down = mask & rises & diagonal
    return score
