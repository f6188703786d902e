"""Rows to token ids, with an exact boundary between the prompt and each completion.

Stands between canonical rows and `segments`. Training and generation see the same ids: a prompt's ids are always
`prompt_ids(prompt)`, and the ids of prompt and completion together decode to their text.

Four things are different from the reference code. It searches the ids for a response marker, but one token may hold the end of the
prompt and the start of the answer. It sets `labels = ids != pad`, so EOS is not trained where pad is EOS. Here there is exactly one
BOS. And a control token that is written out in a user's text stays text.

`kind: plain` puts the tokenizer's usual special tokens before the prompt. `kind: chat` leaves them to the template. `kind: auto`
becomes `chat` if the first prompt is a list of messages, and `plain` if it is text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from rlhf.data.rows import Row, Text, completions_of, ended_of, grades_of
from rlhf.errors import DataError, RecipeError
from rlhf.recipe.sections import TemplateSection
from rlhf.tokens.segments import Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# One private-use character stands for each control token that is written out in a user's text (see `_guard`).
_GUARD = 0xF8000
_GUARDED = re.compile(f"([{chr(_GUARD)}-{chr(_GUARD + 0xFFF)}])")
_PROBE = "probe"


@dataclass(frozen=True)
class Rendered:
    """A row as guarded text (see `_guard`): the prompt, and what each completion adds to it."""

    prompt: str
    completions: tuple[str, ...]
    ended: tuple[bool, ...]
    grades: tuple[float, ...] = ()
    margin: float | None = None


class Renderer:
    """Turns canonical rows into segments, and counts three things.

    boundary_splits: completions that were tokenised apart from their prompt, because one token would have held parts of both.
    special_tokens_in_text: control tokens that were written out in prompts or completions, and kept as plain text.
    unfinished: completions that were cut off, as their rows say, and therefore have no end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, section: TemplateSection) -> None:
        self.tokenizer, self.section = tokenizer, section
        self.boundary_splits = 0
        self.special_tokens_in_text = 0
        self.unfinished = 0
        if section.add_eos and tokenizer.eos_token_id is None:
            raise RecipeError("template.add_eos: this tokenizer has no EOS token; set add_eos: false")
        added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
        names = {str(t) for t in tokenizer.all_special_tokens} | {t.content for t in added.values() if t.special}
        self._specials = sorted(names, key=lambda s: (-len(s), s))
        self._special_pattern = re.compile("|".join(map(re.escape, self._specials)) or "(?!)")
        self._control_ids = set(tokenizer.all_special_ids) | {i for i, t in added.items() if t.special}
        glued = self._plain_ids(_PROBE) * 2
        self._needs_anchor = tokenizer.decode(glued) != _PROBE * 2
        self.kind: Literal["auto", "plain", "chat"] = "auto"
        self._end_id: int | None = None
        if section.kind != "auto":
            self._settle(section.kind)

    def _settle(self, kind: Literal["plain", "chat"]) -> None:
        """From now on every prompt is of this kind."""
        if kind == "chat" and not getattr(self.tokenizer, "chat_template", None):
            name = self.tokenizer.name_or_path or "this model"
            asked = "is chat" if self.section.kind == "chat" else "is auto and the rows are messages"
            raise RecipeError(
                f"template.kind: {asked}, but the tokenizer of {name} has no chat template; "
                "use a model that has one, or rows whose prompts are text with kind: plain"
            )
        self.kind = kind
        self._front = self._front_ids() if kind == "plain" else []
        self._end_id = self._end_of_turn() if kind == "chat" else None

    def render_prompt(self, prompt: Text) -> str:
        """The prompt's text as the model reads it (for `plain`, without the special tokens at the front)."""
        return self._unguard(self._prompt_text(prompt))

    def prompt_ids(self, prompt: Text) -> list[int]:
        """The ids that generation starts from. In training, the prompt has exactly these ids too."""
        return self.batch_prompt_ids([prompt])[0]

    def segment(self, row: Row) -> Segment:
        """One canonical row as a segment. Raises DataError for a row that the template cannot take."""
        return self.batch_segments([row])[0]

    def batch_segments(self, rows: Sequence[Row]) -> list[Segment]:
        """Many rows at once, through the tokenizer's batch call."""
        return self.encode([self.render(row) for row in rows])

    def batch_prompt_ids(self, prompts: Sequence[Text]) -> list[list[int]]:
        """`prompt_ids` of many prompts, through the tokenizer's batch call."""
        texts = [self._prompt_text(prompt) for prompt in prompts]  # the first settles the kind
        return [self._front + ids for ids in self._encode(texts)]

    def continuation_ids(self, text: str) -> list[int]:
        """The ids of a text that follows other ids. It is tokenised apart from them, and control tokens written out in it stay text."""
        return self._pieces(self._guard(text, count=False), goes_on=True)

    def render(self, row: Row) -> Rendered:
        """A row's guarded texts. Raises DataError (file `template`) when the template cannot take the row."""
        prompt, completions = row["prompt"], completions_of(row)
        if not completions:
            raise DataError("template", "a prompt-only row has nothing to train on", field="completion")
        text = self._prompt_text(prompt)
        tails = tuple(self._tail(prompt, text, c) for c in completions)
        margin = row.get("margin")
        number = None if margin is None else float(margin)
        return Rendered(text, tails, tuple(ended_of(row)), tuple(grades_of(row)), number)

    def encode(self, rendered: Sequence[Rendered]) -> list[Segment]:
        """Tokenise rendered rows together: all prompts, then all full texts, then the few completions that must be tokenised apart."""
        prompts = self._encode([r.prompt for r in rendered])
        pairs = [(prompt, r.prompt, c) for r, prompt in zip(rendered, prompts, strict=True) for c in r.completions]
        fulls = self._encode([text + c for _, text, c in pairs])
        tails: list[list[int] | None] = [
            full[len(prompt) :] if full[: len(prompt)] == prompt and len(full) > len(prompt) else None
            for (prompt, _, _), full in zip(pairs, fulls, strict=True)
        ]
        apart = [
            c for (*_, c), ids in zip(pairs, tails, strict=True) if ids is None
        ]  # a token would hold parts of both
        self.boundary_splits += len(apart)
        anchored = self._needs_anchor
        again = iter([self._pieces(c, goes_on=True) for c in apart] if anchored else self._encode(apart))
        whole = iter([next(again) if ids is None else ids for ids in tails])
        return [
            Segment(self._front + prompt, [self._end(next(whole), ended) for ended in r.ended], r.grades, r.margin)
            for r, prompt in zip(rendered, prompts, strict=True)
        ]

    def with_end(self, ids: Sequence[int]) -> list[int]:
        """The ids of a completion that ended: its own, which hold no end, and what training puts after them."""
        return self._end([*ids, *([] if self._end_id is None else [self._end_id])])

    def without_end(self, ids: Sequence[int]) -> list[int]:
        """The ids of a completion without the control tokens at its end."""
        stop = len(ids)
        while stop and ids[stop - 1] in self._control_ids:
            stop -= 1
        return list(ids[:stop])

    # --- text -------------------------------------------------------------------------------------------------------

    def _prompt_text(self, prompt: Text) -> str:
        if self.kind == "auto":
            self._settle("plain" if isinstance(prompt, str) else "chat")
        if isinstance(prompt, str):
            filled = self.section.prompt.replace("{prompt}", self._guard(prompt))
            return filled if self.kind == "plain" else self._chat([{"role": "user", "content": filled}], True)
        if self.kind == "plain":
            raise DataError("template", "a list of messages needs template.kind: chat", field="prompt")
        return self._chat(self._guard_messages(prompt), True)

    def _tail(self, prompt: Text, prompt_text: str, completion: Text) -> str:
        """What follows the prompt's text when this completion is the answer."""
        if isinstance(completion, str) and self.kind == "plain":
            return self._guard(completion)
        if isinstance(prompt, str):
            filled = self.section.prompt.replace("{prompt}", self._guard(prompt, count=False))
            turns = [{"role": "user", "content": filled}]
        else:
            turns = self._guard_messages(prompt, count=False)
        answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        full = self._chat(turns + self._guard_messages(answer), False)
        if not full.startswith(prompt_text):
            raise DataError(
                "template", "the chat template renders the prompt differently once it is answered", field="prompt"
            )
        return full[len(prompt_text) :]

    def _chat(self, messages: list[dict[str, str]], generation: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        except Exception as e:  # jinja's own errors; the template decides what it takes
            raise DataError("template", f"the chat template refuses these messages: {e}", field="prompt") from e
        return cast(str, text)

    def _guard_messages(self, messages: Sequence[dict[str, str]], count: bool = True) -> list[dict[str, str]]:
        return [{"role": m["role"], "content": self._guard(m["content"], count)} for m in messages]

    def _guard(self, text: str, count: bool = True) -> str:
        """The text with a stand-in for each control token, so that only the template's own become control tokens."""
        guarded, found = self._special_pattern.subn(lambda m: chr(_GUARD + self._specials.index(m[0])), text)
        self.special_tokens_in_text += found if count else 0
        return guarded

    def _unguard(self, text: str) -> str:
        return _GUARDED.sub(lambda m: self._special_text(m[0]), text)

    def _special_text(self, stand_in: str) -> str:
        index = ord(stand_in) - _GUARD
        return self._specials[index] if index < len(self._specials) else stand_in

    # --- ids --------------------------------------------------------------------------------------------------------

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of guarded texts. The template's control tokens become control tokens; the tokenizer adds none of its own.

        A text that occurs more than once (the prompt of several pairs, or a completion in several pairs) is tokenised once.
        """
        if not texts:
            return []
        if len(distinct := list(dict.fromkeys(texts))) < len(texts):
            ids_of = dict(zip(distinct, self._encode(distinct), strict=True))
            return [ids_of[text] for text in texts]
        plain = [i for i, t in enumerate(texts) if not _GUARDED.search(t)]
        out: list[list[int]] = [[] for _ in texts]
        if plain:
            batch = self.tokenizer([texts[i] for i in plain], add_special_tokens=False, return_attention_mask=False)
            for i, ids in zip(plain, batch["input_ids"], strict=True):
                out[i] = list(ids)
        for i in set(range(len(texts))).difference(plain):
            out[i] = self._pieces(texts[i], goes_on=False)
        return out

    def _pieces(self, text: str, goes_on: bool) -> list[int]:
        """The ids of one guarded text, with the stand-ins as plain text. `goes_on`: other text comes before it."""
        ids: list[int] = []
        for piece in filter(None, _GUARDED.split(text)):
            literal = bool(_GUARDED.fullmatch(piece))
            piece = self._special_text(piece) if literal else piece
            ids += self._continue(piece, literal) if ids or goes_on else self._plain_ids(piece, literal)
        return ids

    def _plain_ids(self, text: str, literal: bool = False) -> list[int]:
        options: dict[str, Any] = {"split_special_tokens": True} if literal else {}
        ids = list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])
        if literal and self._control_ids.intersection(ids):  # a tokenizer without that option
            return self._plain_ids(text[:1]) + self._continue(text[1:])
        return ids

    def _continue(self, text: str, literal: bool = False) -> list[int]:
        """The ids of a text that follows other text: without the mark for the start of a word that some tokenizers add."""
        if self._needs_anchor:
            anchor, anchored = self._plain_ids("\n"), self._plain_ids("\n" + text, literal)
            if anchored[: len(anchor)] == anchor:
                return anchored[len(anchor) :]
        return self._plain_ids(text, literal)

    def _end(self, ids: list[int], ended: bool = True) -> list[int]:
        """A completion's ids up to its end-of-turn token. With `add_eos`, EOS follows, unless that token is EOS.

        A completion that did not end stops before the end-of-turn token, and has no EOS.
        """
        if self._end_id is not None and self._end_id in ids:
            ids = ids[: len(ids) - ids[::-1].index(self._end_id) - (not ended)]
        if not ended and ids:
            self.unfinished += 1
            return ids
        eos = cast(int, self.tokenizer.eos_token_id)
        return [*ids, eos] if self.section.add_eos and (not ids or ids[-1] != eos) else ids

    def _front_ids(self) -> list[int]:
        """The special tokens that this tokenizer puts before a text. What comes after a text is left to `add_eos`."""
        bare, full = self._plain_ids(_PROBE), list(self.tokenizer(_PROBE)["input_ids"])
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start]
        return []

    def _end_of_turn(self) -> int | None:
        """The control token that the template puts after an assistant's message, if any."""
        turns = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
        _, _, suffix = self._chat(turns, False).rpartition(_PROBE)
        return next((i for i in self._plain_ids(suffix) if i in self._control_ids), None)
