"""What is compared: the one definition of a normalised text, its shingles and their Jaccard similarity.

In plain Python, for the reference recipe and for tests. The kernels compute the same from UTF-8 bytes, and tests compare the two.
"""

from __future__ import annotations

from collections.abc import Set


def normalise(text: str, max_chars: int | None) -> str:
    """The letters and digits (of any script) of the first `max_chars` characters, in lower case."""
    return "".join(c for c in text[:max_chars].lower() if c.isalnum())


def shingles(text: str, size: int) -> set[str]:
    """Every run of `size` characters (code points). A shorter text has none, and is compared whole."""
    return {text[i : i + size] for i in range(len(text) - size + 1)}


def jaccard(a: Set[str], b: Set[str]) -> float:
    """Shared shingles over all shingles of both. Two empty sets have similarity 1."""
    return len(a & b) / len(a | b) if a or b else 1.0
