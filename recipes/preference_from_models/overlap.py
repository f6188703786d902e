"""Replaces a rating model in the small form of this recipe: does the answer use the words of the prompt, without repeating itself?

The mark is from 1 to 5: 1 + 2 x the share of the prompt's longer words that the answer has + 2 x the share of its own words that
are not repetitions. It measures nothing else. To make real data, ask a model (see the README).
"""

from __future__ import annotations

import re


def score(prompts: list[str], completions: list[str]) -> list[float]:
    """One mark for each completion."""
    return [_mark(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def _mark(prompt: str, completion: str) -> float:
    asked = {word for word in _words(prompt) if len(word) > 3}
    said = _words(completion)
    taken_up = len(asked & set(said)) / len(asked) if asked else 0.0
    distinct = len(set(said)) / len(said) if said else 0.0
    return round(1 + 2 * taken_up + 2 * distinct, 3)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
