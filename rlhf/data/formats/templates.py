"""Prompts that are put together from a row's columns: the named templates, and the user's own.

Used by the formats whose prompt is more than one column. A template is filled in one pass, so that braces in a text stay what they are.
The Alpaca texts are Stanford's; `alpaca_ko` is KoAlpaca's (and KoChatGPT's), which end at the colon of the answer's heading.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rlhf.errors import RecipeError

_PLACEHOLDER = re.compile(r"\{(\w+)\}")

# name: (without an input, with one)
ALPACA: Mapping[str, tuple[str, str]] = {
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n",
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    ),
    "alpaca_ko": (
        "Below is an instruction that describes a task.\n아래는 작업을 설명하는 명령어입니다.\n\n"
        "Write a response that appropriately completes the request.\n"
        "명령어에 따른 요청을 적절히 완료하는 응답을 작성하세요.\n\n"
        "### Instruction(명령어):\n{instruction}\n\n### Response(응답):",
        "Below is an instruction that describes a task, paired with an input that provides further context.\n"
        "아래는 작업을 설명하는 명령어와 추가적 맥락을 제공하는 입력이 짝을 이루는 예제입니다.\n\n"
        "Write a response that appropriately completes the request.\n요청을 적절히 완료하는 응답을 작성하세요.\n\n"
        "### Instruction(명령어):\n{instruction}\n\n### Input(입력):\n{input}\n\n### Response(응답):",
    ),
}


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with each {name} of `values` replaced, once; any other brace is left as it is."""
    return _PLACEHOLDER.sub(lambda m: values.get(m.group(1), m.group(0)), template)


def placeholders(template: str) -> list[str]:
    """The names in braces, in order."""
    return _PLACEHOLDER.findall(template)


def check(template: str, names: Sequence[str], presets: Sequence[str], where: str) -> None:
    """Raises RecipeError for a template that the format cannot fill."""
    if not names:
        raise RecipeError(f"{where}: template: this format takes none; its prompt is a column of its own")
    if template in presets:
        return
    there = placeholders(template)
    known = ", ".join(f"{{{name}}}" for name in names)
    if not there:
        named = f" (or one of the names {', '.join(presets)})" if presets else ""
        raise RecipeError(f"{where}: template: {template!r} holds no column; it may hold {known}{named}")
    if unknown := [name for name in there if name not in names]:
        raise RecipeError(f"{where}: template: there is no {{{unknown[0]}}} in this format; it may hold {known}")
