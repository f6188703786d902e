"""The step `paraphrase`: a model says each prompt in other words; the completion stays. The KorQuAD experiment does so.

It stands early in a recipe, before the split. A row and its rephrasings are one group, so `split: {by: group}` never puts a
question into train and its rephrasing into test. A rephrasing is left out and counted if it is empty, or if it differs from the
prompt or from another rephrasing only in case and spaces.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rlhf.data.rows import Located, Row, Text
from rlhf.recipe.synthesis import ParaphraseStep
from rlhf.synthesis.asking import Ask, Given, Lane, Made
from rlhf.synthesis.prompts import fill_fenced, template, with_system, without_fence

FAILED, EMPTY, SAME, FENCED = "the engine failed", "empty", "the same as another", "repeats the fence of its prompt"
BLANK_LINE = re.compile(r"\n(?:[^\S\n]*\n)+")  # a line of spaces, or with the \r of a Windows file, is blank too
NONE_LEFT = "no rephrasing of it could be used"


class Paraphrasing:
    """Adds rephrasings to rows, or replaces rows by them."""

    rounds = 1

    def __init__(self, step: ParaphraseStep) -> None:
        self.lanes: Sequence[Lane] = [Lane(step.engine, step.sampling.model_copy(update={"n": step.k}))]
        self._step = step
        self._template = template(step.prompt, "paraphrase", step.language)
        self._made = self._broken = 0
        self._left_out: Counter[str] = Counter()

    def asks(self, row: Row, name: str, round: int, given: Given) -> Iterable[Ask]:
        yield Ask("0", self._request(self._words(row["prompt"])[1])[0])

    def made(self, row: Located, name: str, given: Given) -> Made:
        head, words = self._words(row.data["prompt"])
        answer = given("0")
        number = self._request(words)[1]
        found: list[str] = []
        seen = {_alike(words)}
        if answer is None or answer.error is not None:
            self._left_out[FAILED] += self._step.k
        else:
            self._broken += answer.ended.count(False)
            for text in (without_fence(text, number) for text in answer.texts):
                if not text:
                    self._left_out[FENCED if text is None else EMPTY] += 1
                elif _alike(text) in seen:
                    self._left_out[SAME] += 1
                else:
                    seen.add(_alike(text))
                    found.append(text)
        self._made += len(found)
        new = [{**row.data, "prompt": _with_words(row.data["prompt"], head, text)} for text in found]
        rows = [row.data, *new] if self._step.keep_original else new
        return Made(rows, NONE_LEFT)

    def facts(self) -> dict[str, Any]:
        return {
            "rephrasings": self._made,
            "rephrasings_left_out": dict(self._left_out.most_common()),
            "answers_cut_off": self._broken,
        }

    def _words(self, prompt: Text) -> tuple[str, str]:
        """(what stands before it, the part of the prompt, or of its last message, that is rephrased)."""
        whole = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if self._step.part == "all":
            return "", whole
        whole = whole.rstrip()
        *_, at = (0, *(blank.end() for blank in BLANK_LINE.finditer(whole)))
        return whole[:at], whole[at:]

    def _request(self, words: str) -> tuple[Text, str]:
        """(what the model is asked, the digits of its fence)."""
        text, number = fill_fenced(self._template, {"prompt": ("text", words)})
        return with_system(self._step.system, text), number


def in_one_group(row: Located) -> Located:
    """The row, in a group of its own if it has none. All rows of a group stay on one side of a split."""
    return row if row.group is not None else replace(row, group=f"{row.file}:{row.row}")


def _with_words(prompt: Text, head: str, words: str) -> Text:
    if isinstance(prompt, str):
        return head + words
    return [*prompt[:-1], {**prompt[-1], "content": head + words}]


def _alike(text: str) -> str:
    return " ".join(text.split()).casefold()
