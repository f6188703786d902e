"""Rewards for the tests, as a user would write them."""

from __future__ import annotations


def count_letters(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(sum(c.isalpha() for c in completion)) for completion in completions]


def not_a_number(prompts: list[str], completions: list[str]) -> list[float]:
    return [float("nan")] * len(completions)


def one_too_few(prompts: list[str], completions: list[str]) -> list[float]:
    return [0.0] * (len(completions) - 1)


def nothing(prompts: list[str], completions: list[str]) -> None:
    return None
