"""Judges for the tests, as a user would write them."""

from __future__ import annotations

from typing import Any


def letters(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(sum(c.isalpha() for c in completion)) for completion in completions]


def judge_card(name: str) -> dict[str, Any]:
    return {"asked_for": name, "accuracy": 0.75}


def more_letters(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    difference = [a - b for a, b in zip(letters(prompts, first), letters(prompts, second), strict=True)]
    return [1.0 if d > 0 else 0.0 if d < 0 else 0.5 for d in difference]


def always_first(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    return [1.0] * len(prompts)
