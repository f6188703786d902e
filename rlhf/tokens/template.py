"""Rows to token ids, with an exact boundary between the prompt and each completion.

Stands between canonical rows and `segments`. Training and generation see the same ids: a prompt's ids are always
`prompt_ids(prompt)`, and the ids of prompt and completion together decode to their text.

Four things are different from the reference code. It searches the ids for a response marker, but one token may hold the end of the
prompt and the start of the answer. It sets `labels = ids != pad`, so EOS is not trained where pad is EOS. Here there is exactly one
BOS. And a control token that is written out in a user's text stays text.

`kind: plain` puts the tokenizer's usual special tokens before the prompt. `kind: chat` leaves them to the template. `kind: auto`
becomes `chat` if the first prompt is a list of messages, and `plain` if it is text.

A row of messages trains its last assistant turn, or with `train_on` all or the marked ones. `turns` finds them in the rendered
conversation; a completion is then what follows the prompt, and the tokens between the trained turns are left untrained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from rlhf.data.rows import Message, Row, Text, completions_of, ended_of, grades_of
from rlhf.errors import DataError, RecipeError
from rlhf.recipe.sections import TemplateSection
from rlhf.tokens.chat import as_template_has_them, generation_marks, refuse_transcript, render
from rlhf.tokens.guard import Guard
from rlhf.tokens.segments import Segment
from rlhf.tokens.turns import Span, Turns, after, gaps, prompt_and_turns, token_places

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "probe"


@dataclass(frozen=True)
class Rendered:
    """A row as guarded text (see `guard`): the prompt, and what each completion adds to it."""

    prompt: str
    completions: tuple[str, ...]
    ended: tuple[bool, ...]
    grades: tuple[float, ...] = ()
    margin: float | None = None
    trained: tuple[list[Span], ...] = ()  # for each completion the characters that train; empty where all do


class Renderer:
    """Turns canonical rows into segments, and counts four things.

    boundary_splits: completions and turns that were tokenised apart from what is before them, because one token would have held parts
    of both.
    marks_ignored: rows that mark turns to train or not to train, where `train_on` is not `marked`.
    special_tokens_in_text: control tokens that were written out in prompts or completions, and kept as plain text.
    unfinished: completions that were cut off, as their rows say, and therefore have no end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, section: TemplateSection) -> None:
        self.tokenizer, self.section = tokenizer, section
        self.boundary_splits = 0
        self.special_tokens_in_text = 0
        self.unfinished = 0
        self.marks_ignored = 0
        if section.add_eos and tokenizer.eos_token_id is None:
            raise RecipeError("template.add_eos: this tokenizer has no EOS token; set add_eos: false")
        self._guarded = Guard(tokenizer)
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
        return self._guarded.show(self._prompt_text(prompt))

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
        margin = row.get("margin")
        number = None if margin is None else float(margin)
        about = (tuple(ended_of(row)), tuple(grades_of(row)), number)
        if isinstance(prompt, list):
            talks = [c if isinstance(c, list) else [{"role": "assistant", "content": c}] for c in completions]
            marked = any("train" in message for messages in (prompt, *talks) for message in messages)
            self.marks_ignored += marked and self.section.train_on != "marked"
            if self.section.train_on != "last" or any(len(talk) > 1 for talk in talks):
                turns = self._turns(prompt, talks)
                marks = [[*prompt, *talk] for talk in talks]
                text, tails, trained = prompt_and_turns(turns, text, len(prompt), marks, self.section.train_on)
                return Rendered(text, tails, *about, trained)
        return Rendered(text, tuple(self._tail(prompt, text, c) for c in completions), *about)

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
            self._segment(r, prompt, [next(whole) for _ in r.completions])
            for r, prompt in zip(rendered, prompts, strict=True)
        ]

    def _segment(self, r: Rendered, prompt: list[int], tails: list[list[int]]) -> Segment:
        """A rendered row and its ids as a segment."""
        places: list[list[Span]] = []
        for i, spans in enumerate(r.trained):
            text, cuts = r.completions[i], sorted({cut for span in spans for cut in span})
            whole = self._encode([r.prompt + text[:cut] for cut in cuts])
            heads = [ids[len(prompt) :] if ids[: len(prompt)] == prompt else None for ids in whole]
            tails[i], at, splits = token_places(tails[i], text, cuts, heads, lambda t: self._pieces(t, goes_on=True))
            places.append([(at[a], len(tails[i]) if b == len(text) else at[b]) for a, b in spans])
            self.boundary_splits += splits
        ids = [self._end(tail, ended) for tail, ended in zip(tails, r.ended, strict=True)]
        untrained = [gaps(spans, len(old), len(new)) for spans, old, new in zip(places, tails, ids, strict=False)]
        return Segment(self._front + prompt, ids, r.grades, r.margin, untrained if any(untrained) else ())

    def with_end(self, ids: Sequence[int]) -> list[int]:
        """The ids of a completion that ended: its own, which hold no end, and what training puts after them."""
        return self._end([*ids, *([] if self._end_id is None else [self._end_id])])

    def without_end(self, ids: Sequence[int]) -> list[int]:
        """The ids of a completion without the control tokens at its end."""
        stop = len(ids)
        while stop and ids[stop - 1] in self._guarded.ids:
            stop -= 1
        return list(ids[:stop])

    # --- text -------------------------------------------------------------------------------------------------------

    def _prompt_text(self, prompt: Text) -> str:
        if self.kind == "auto":
            self._settle("plain" if isinstance(prompt, str) else "chat")
        if isinstance(prompt, str):
            if self.kind == "chat":
                refuse_transcript(prompt)
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
        return after(prompt_text, self._chat(turns + self._guard_messages(answer), False))

    def _turns(self, prompt: list[Message], completions: list[list[Message]]) -> list[Turns]:
        """The whole conversation of each completion."""
        before = self._guard_messages(prompt, count=False)
        end = "" if self._end_id is None else cast(str, self.tokenizer.convert_ids_to_tokens(self._end_id))
        turns = [Turns(self._chat, before + self._guard_messages(c), end) for c in completions]
        for whole in turns:
            whole.check(generation_marks(self.tokenizer, whole.messages))
        return turns

    def _chat(self, messages: Sequence[Message], generation: bool) -> str:
        return render(self.tokenizer, messages, generation)

    def _guard_messages(self, messages: Sequence[Message], count: bool = True) -> list[Message]:
        return as_template_has_them(messages, lambda text: self._guard(text, count))

    def _guard(self, text: str, count: bool = True) -> str:
        """The text with a stand-in for each control token, so that only the template's own become control tokens."""
        guarded, found = self._guarded.hide(text)
        self.special_tokens_in_text += found if count else 0
        return guarded

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
        plain = [i for i, t in enumerate(texts) if not self._guarded.hides_any(t)]
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
        for piece, literal in self._guarded.pieces(text):
            ids += self._continue(piece, literal) if ids or goes_on else self._plain_ids(piece, literal)
        return ids

    def _plain_ids(self, text: str, literal: bool = False) -> list[int]:
        options: dict[str, Any] = {"split_special_tokens": True} if literal else {}
        ids = list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])
        if literal and self._guarded.ids.intersection(ids):  # a tokenizer without that option
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
        return next((i for i in self._plain_ids(suffix) if i in self._guarded.ids), None)
