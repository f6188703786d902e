"""Prompts that are put together from a row's columns: the templates that have a name, and the user's own.

Used by the formats whose prompt is made of several columns. A template is filled in one pass, so a text with braces stays as it is.
The texts of `alpaca` are Stanford Alpaca's. Those of `kochatgpt` are KoChatGPT's, English and Korean in one, with headings such as
`### Instruction(명령어):`; they end at the colon of the answer's heading.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rlhf.data.formats.fields import Spec
from rlhf.errors import RecipeError
from rlhf.recipe.sections import Format, SourceSection

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
    "kochatgpt": (
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


def check(source: SourceSection, spec: Spec, format: Format) -> None:
    """Raises RecipeError for a template that the source's format cannot fill."""
    known = ", ".join(f"{{{name}}}" for name in spec.template)
    for key, template in (("template", source.template), ("template_no_input", source.template_no_input)):
        where = f"{source.path} (format {format}): {key}"
        if template is None or (key == "template" and template in spec.presets):
            continue
        if not spec.template:
            raise RecipeError(f"{where}: this format takes none; its prompt is a column of its own")
        there = placeholders(template)
        if not there:
            named = f" (or one of the names {', '.join(spec.presets)})" if spec.presets else ""
            raise RecipeError(f"{where}: {template!r} holds no column; it may hold {known}{named}")
        if unknown := [name for name in there if name not in spec.template]:
            raise RecipeError(f"{where}: there is no {{{unknown[0]}}} in this format; it may hold {known}")
    if source.template_no_input is None:
        return
    where = f"{source.path} (format {format}): template_no_input"
    if "input" not in spec.template:
        raise RecipeError(f"{where}: this format has no input; it takes a template only")
    if "input" in placeholders(source.template_no_input):
        raise RecipeError(f"{where}: is for rows whose input is empty; take {{input}} out of it")
    if source.template is None or source.template in spec.presets:
        raise RecipeError(
            f"{where}: needs a template of your own for the rows that have an input; a named one has both"
        )
