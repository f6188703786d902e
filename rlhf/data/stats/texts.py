"""Texts that are no answer, or more than one: nothing said, leaked templates, boilerplate, broken encodings.

Each flaw is a pattern that real data sets hold; a match is a hint with its place, not a verdict, and lint words it so.
Prompts are searched only for what is wrong in a prompt too: `### Response:` belongs into an Alpaca prompt.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.data.formats.kochatgpt import unquoted
from rlhf.data.stats.chunk import Chunk, side

AROUND = 30  # characters of text shown on either side of a match

_SAID = re.compile(r"[^\W_]")
_TEMPLATE = re.compile(
    r"<\|[A-Za-z0-9_ ]{1,40}\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</s>\s*\Z"
    r"|### ?(?:Instruction|Response|Input|Human|Assistant|명령어|입력|응답) ?(?:\([^()\n]{1,20}\))?:"
    r"|(?:\n|\A)(?:Human|Assistant|USER|ASSISTANT): "
)
_DISCLAIMER = re.compile(
    r"\b[Aa]s an? (?:AI\b|(?:large )?language model|artificial intelligence)"
    r"|\bI(?:'m| am) (?:just |only )?an? (?:AI\b|(?:large )?language model|artificial intelligence)"
    r"|(?:저는|나는) (?:AI|인공지능)|인공지능(?:으로서| ?언어 ?모델| ?챗봇)|AI ?(?:언어 ?)?모델(?:로서|이므로|이기|입니다)"
)
_HTML = re.compile(r"</?(?:p|br|div|li|ul|ol|pre|code|blockquote|strong|em|a|span|img|h[1-6])\b[^<>]*>")


NO_WORDS, TEMPLATE, SPECIAL, DISCLAIMER = "no_words", "template", "special_tokens", "ai_disclaimer"
HTML, NEWLINE, REPLACEMENT, QUOTE = "html", "literal_newline", "replacement_character", "stray_quote"


@dataclass(frozen=True)
class Flaw:
    """A pattern, and substrings of which any text that matches holds one: they are found far faster than the pattern."""

    find: Callable[[str], tuple[int, int] | None]
    needs: tuple[str, ...] = ("",)


def _match(pattern: re.Pattern[str]) -> Callable[[str], tuple[int, int] | None]:
    return lambda text: m.span() if (m := pattern.search(text)) else None


def _says_nothing(text: str) -> tuple[int, int] | None:
    return None if _SAID.search(text) else (0, len(text))


def _literal_newline(text: str) -> tuple[int, int] | None:
    at = text.find("\\n") if "\n" not in text else -1  # beside real line breaks it is more likely code
    return (at, at + 2) if at >= 0 else None


def _stray_quote(text: str) -> tuple[int, int] | None:
    said = text.strip()
    if len(unquoted(said)) == len(said):
        return None
    at = text.find("'") if said[0] == "'" else text.rfind("'")
    return at, at + 1


IN_PROMPTS: dict[str, Flaw] = {
    NO_WORDS: Flaw(_says_nothing),
    NEWLINE: Flaw(_literal_newline, ("\\n",)),
    REPLACEMENT: Flaw(_match(re.compile("\ufffd")), ("\ufffd",)),
}
IN_COMPLETIONS: dict[str, Flaw] = {
    **IN_PROMPTS,
    TEMPLATE: Flaw(_match(_TEMPLATE), ("<", "INST]", "#", "Human: ", "Assistant: ", "USER: ", "ASSISTANT: ")),
    DISCLAIMER: Flaw(_match(_DISCLAIMER), ("AI", "language model", "artificial intelligence", "인공지능")),
    HTML: Flaw(_match(_HTML), ("<",)),
    QUOTE: Flaw(_stray_quote, ("'",)),
}


@dataclass
class _Found:
    rows: int = 0
    by_side: Counter[str] = field(default_factory=Counter)
    example: str | None = None
    excerpt: str | None = None


class Texts:
    """Flawed texts by flaw: how many rows, on which side, where the first is, and what it reads like."""

    def __init__(self, special_tokens: Sequence[str] = ()) -> None:
        self._in_completions, self._in_prompts = dict(IN_COMPLETIONS), dict(IN_PROMPTS)
        if special_tokens:
            pattern = re.compile("|".join(map(re.escape, sorted(special_tokens, key=len, reverse=True))))
            flaw = Flaw(_match(pattern), tuple(special_tokens))
            self._in_completions[SPECIAL] = self._in_prompts[SPECIAL] = flaw
        self._found = {name: _Found() for name in self._in_completions}

    def add(self, chunk: Chunk) -> None:
        prompts = [(text, i, "prompt") for i, text in enumerate(chunk.prompts)]
        completions = [
            (text, i, side(kind, place))
            for i, (kind, texts) in enumerate(zip(chunk.kinds, chunk.completions, strict=True))
            for place, text in enumerate(texts)
        ]
        hits: dict[str, set[int]] = {}
        for flaws, texts in ((self._in_prompts, prompts), (self._in_completions, completions)):
            together = "\0".join(text for text, *_ in texts)
            for name, flaw in flaws.items():
                there = [part for part in flaw.needs if part in together]
                worth = sorted({k for part in there for k, (text, *_) in enumerate(texts) if part in text})
                self._search(chunk, name, flaw, [texts[k] for k in worth], hits.setdefault(name, set()))
        for name, rows in hits.items():
            self._found[name].rows += len(rows)

    def _search(self, chunk: Chunk, name: str, flaw: Flaw, texts: list[tuple[str, int, str]], rows: set[int]) -> None:
        found = self._found[name]
        for text, i, side_name in texts:
            if (span := flaw.find(text)) is None:
                continue
            rows.add(i)
            found.by_side[side_name] += 1
            if found.example is None:
                found.example = f"{chunk.rows[i].file}:{chunk.rows[i].row}"
                found.excerpt = text[max(0, span[0] - AROUND) : span[1] + AROUND]

    def report(self) -> dict[str, Any]:
        """{flaw: {rows, by_side, example, excerpt}}, every flaw searched for, also where none was found."""
        return {name: {**vars(found), "by_side": dict(found.by_side)} for name, found in self._found.items()}
