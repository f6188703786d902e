"""Reward functions that come with the program: `callable: "rlhf.rewards:NAME"` in a recipe, settings in `kwargs`.

Each is a function of lists, as a user's own would be (docs/rewards.md). A score is one number for each completion; None where the
function does not apply. They look at their settings before anything else, so `rlhf check` finds a wrong one by asking about no
completions. Two judges of sentiment are in `rlhf/embedded/sentiment.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

NUMBER = r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
FINAL = re.compile(rf"####\s*\$?\s*({NUMBER})|\\boxed\s*\{{\s*\\?\$?\s*({NUMBER})")


def length(
    completions: Sequence[str], completion_ids: Sequence[Sequence[int]], *, target: int, unit: str = "tokens"
) -> list[float]:
    """0 up to `target`, then one less for each further `target`: -1 at twice the length, -2 at three times.

    `unit`: tokens (an end token is one), words or characters.
    """
    if isinstance(target, bool) or not isinstance(target, int) or target < 1:
        raise ValueError(f"target: must be a whole number from 1, got {target!r}")
    if unit not in ("tokens", "words", "characters"):
        raise ValueError(f"unit: must be tokens, words or characters, got {unit!r}")
    counted: Sequence[Any] = completion_ids if unit == "tokens" else completions
    lengths = [len(text.split()) if unit == "words" else len(text) for text in counted]
    return [-max(n - target, 0) / target for n in lengths]


def ended(completions: Sequence[str], ended: Sequence[bool]) -> list[float]:
    """1 for a completion that came to its end by itself, 0 for one that was cut off."""
    return [float(end) for end in ended]


def regex(completions: Sequence[str], *, pattern: str, whole: bool = False) -> list[float]:
    """1 where the pattern (Python's `re`) is found in the completion, else 0. `whole`: it must match all of the text."""
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"pattern: {pattern!r} is no regular expression: {error}") from error
    _must_be_true_or_false("whole", whole)
    find = compiled.fullmatch if whole else compiled.search
    return [float(find(text) is not None) for text in completions]


def json_valid(completions: Sequence[str], *, keys: Sequence[str] = ()) -> list[float]:
    """1 where the whole completion is JSON, else 0. With `keys` it must be an object that has all of them."""
    if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"keys: must be a list of texts, got {keys!r}")
    return [float(_is_json(text, keys)) for text in completions]


def gsm8k(completions: Sequence[str], answer: Sequence[Any], *, anywhere: bool = False) -> list[float | None]:
    """1 where the completion's answer equals the gold one, else 0; None where the row has no gold answer.

    The answer is the number after the last `####` or in the last `\\boxed{...}`, whichever comes later; with `anywhere` and
    neither of them, the last number of the text. The gold answer is a number, or a text that ends as GSM8K's do, `#### 72`.
    """
    _must_be_true_or_false("anywhere", anywhere)
    return [
        None if gold is None else float(_final_number(text, anywhere) == _gold(gold))
        for text, gold in zip(completions, answer, strict=True)
    ]


def _final_number(text: str, anywhere: bool) -> Decimal | None:
    """The number that a text gives as its answer; None where there is none."""
    marked = [a or b for a, b in FINAL.findall(text)]
    found = marked or (re.findall(NUMBER, text) if anywhere else [])
    return Decimal(found[-1].replace(",", "")) if found else None


def _gold(value: Any) -> Decimal:
    number = _final_number(str(value), anywhere=False)
    if number is None and re.fullmatch(rf"\s*\$?{NUMBER}\s*", str(value)):
        number = _final_number(str(value), anywhere=True)
    if number is None:
        raise ValueError(f"answer: {value!r} is neither a number nor a text with #### and a number")
    return number


def _is_json(text: str, keys: Sequence[str]) -> bool:
    try:
        found = json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return False
    return not keys or (isinstance(found, dict) and all(key in found for key in keys))


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is Python's and no JSON")


def _must_be_true_or_false(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}: must be true or false, got {value!r}")
