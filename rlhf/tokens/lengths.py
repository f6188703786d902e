"""Lengths in tokens as training counts them: the same renderer, template and end-of-text token as `dataset`.

The heavy part of `stats`: only a run with a tokenizer imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rlhf.data.rows import Row, completions_of
from rlhf.data.stats.chunk import Lengths
from rlhf.data.stats.inputs import Target
from rlhf.data.stats.measure import Counting
from rlhf.errors import DataError, RecipeError
from rlhf.recipe.sections import TemplateSection
from rlhf.tokens.template import Renderer
from rlhf.tokens.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def counting(target: Target, tokenizer: str | None = None, max_length: int | None = None) -> tuple[Target, Counting]:
    """The target with its options, and how its lengths are counted: in tokens where a tokenizer is named.

    Raises RecipeError for a `max_length` without a tokenizer, and for a tokenizer that cannot be loaded.
    """
    if max_length is not None:
        target = replace(target, max_length=max_length)
    name = tokenizer or target.tokenizer
    if name is None:
        if max_length is not None:
            raise RecipeError("--max-length: counts tokens, so it needs a tokenizer: add --tokenizer NAME_OR_PATH")
        return target, Counting()
    loaded = load_tokenizer(name)
    specials = [str(token) for token in loaded.all_special_tokens]
    return target, Counting(TokenLengths(loaded, target.template), "tokens", name, specials)


class TokenLengths:
    """Counts tokens of rows. Without a template, or with `kind: auto`, a row of messages is `chat` and a row of text `plain`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: TemplateSection | None) -> None:
        self._tokenizer = tokenizer
        self._add_eos = tokenizer.eos_token_id is not None
        self._renderers: dict[str, Renderer] = {}
        self._template = template

    def __call__(self, rows: Sequence[Row]) -> list[Lengths]:
        """Through the tokenizer's batch call; one by one only where the template refuses some row."""
        try:
            return self._batch(rows)
        except (DataError, ValueError):
            return [self._one(row) for row in rows]

    def _one(self, row: Row) -> Lengths:
        try:
            return self._batch([row])[0]
        except (DataError, ValueError):
            return None

    def _batch(self, rows: Sequence[Row]) -> list[Lengths]:
        out: list[Lengths] = [None] * len(rows)
        groups: dict[tuple[bool, bool], list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault((isinstance(row["prompt"], list), bool(completions_of(row))), []).append(i)
        for (messages, answered), members in groups.items():
            renderer = self._renderer("chat" if messages else "plain")
            some = [rows[i] for i in members]
            if answered:
                for i, s in zip(members, renderer.batch_segments(some), strict=True):
                    out[i] = (len(s.prompt_ids), [len(c) for c in s.completion_ids])
            else:
                for i, ids in zip(members, renderer.batch_prompt_ids([row["prompt"] for row in some]), strict=True):
                    out[i] = (len(ids), [])
        return out

    def _renderer(self, kind: str) -> Renderer:
        if kind not in self._renderers:
            section = self._template or TemplateSection(add_eos=self._add_eos)
            if section.kind == "auto":
                section = section.model_copy(update={"kind": kind})
            self._renderers[kind] = Renderer(self._tokenizer, section)
        return self._renderers[kind]
