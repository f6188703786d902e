"""Rewards for the tests, as a user would write them."""

from __future__ import annotations

from tests.tiny import tiny_tokenizer


def count_letters(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(sum(c.isalpha() for c in completion)) for completion in completions]


def not_a_number(prompts: list[str], completions: list[str]) -> list[float]:
    return [float("nan")] * len(completions)


def one_too_few(prompts: list[str], completions: list[str]) -> list[float]:
    return [0.0] * (len(completions) - 1)


def nothing(prompts: list[str], completions: list[str]) -> None:
    return None


def never_ending(completions: list[str], completion_ids: list[list[int]]) -> list[float]:
    """1 for a completion that was cut off: its last token is not EOS."""
    eos = tiny_tokenizer().eos_token_id
    return [float(ids[-1] != eos) for ids in completion_ids]


def num_tokens(completions: list[str], completion_ids: list[list[int]]) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def the_same(prompts: list[str], completions: list[str]) -> list[float]:
    return [0.5] * len(completions)


def share_of_letters(prompts: list[str], completions: list[str]) -> list[float]:
    return [sum(c.isalpha() for c in completion) / max(len(completion), 1) for completion in completions]
