"""Which characters of a rendered conversation are the assistant's turns, for any chat template.

Used by `template` where a row trains several turns, or some of many. Nothing is known of a template but what it makes of messages, so
each turn is found by an experiment: the whole conversation is rendered once more with one stand-in character for that turn's content, and
the turn is where the two renderings differ. Both renderings are whole: a template that writes a turn in another way once others follow (one
that takes earlier thoughts out, for instance) is no exception. A turn

    starts  where generation starts: after what the template's generation prompt adds;
    ends    with the template's end-of-turn token, which trains with its turn. A line break after it belongs to no turn.

What cannot be told exactly is an error. If the template has `{% generation %}`, its marks must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf.errors import DataError

Messages = list[dict[str, Any]]
Span = tuple[int, int]
STAND_IN = chr(0xF9000)  # one past the stand-ins of control tokens (see `template`)


class Turns:
    """The assistant's turns of one conversation. `render(messages, generation)` gives its text, with control tokens only where the template
    puts them; `end` is the text of the end-of-turn token, "" where there is none.
    """

    def __init__(self, render: Callable[[Messages, bool], str], messages: Messages, end: str) -> None:
        self.messages, self._render, self._end = messages, render, end
        self.text = render(messages, False)
        self._known: dict[int, Span] = {}

    def span(self, index: int) -> Span:
        """The characters of a turn in `text`. Raises DataError where they cannot be told."""
        first, last = self._changed(index)
        start = self._start(index, first)
        if not self._end:
            return start, last if index + 1 < len(self.messages) else len(self.text)
        at = self.text.find(self._end, last)
        stop = at + len(self._end)
        calls = bool(self.messages[index].get("tool_calls"))  # the stand-in is a name inside the call
        if at < 0 or not (calls or not self.text[last:at].strip()):
            raise _unclear(index, f"does not end with {self._end}")
        if calls and index + 1 < len(self.messages) and self._changed(index + 1)[0] < stop:
            raise _unclear(index, f"does not end with {self._end}")
        return start, stop

    def check(self, marked: Sequence[Span] | None) -> None:
        """Raises DataError if the template's own `{% generation %}` marks other characters than the assistant's turns. None: it has none."""
        if marked is None:
            return
        turns = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        if len(marked) != len(turns):
            raise DataError(
                "template", f"the template's generation marks are {len(marked)}, for {len(turns)} assistant turns"
            )
        for i, (a, b) in zip(turns, marked, strict=True):
            first, last = self._changed(i)
            start, stop = self.span(i)
            if not (start <= a <= first and last <= b and not self.text[stop:b].strip()):
                raise _unclear(i, "is not what the template's generation marks say")

    def _changed(self, index: int) -> Span:
        """Where the text differs if the message's content is another. For tool calls, the name of the first call."""
        if index in self._known:
            return self._known[index]
        other = _with_stand_in(self.messages[index])
        changed = self._render([*self.messages[:index], other, *self.messages[index + 1 :]], False)
        if changed.count(STAND_IN) != 1 or STAND_IN in self.text:
            raise _unclear(index, f"stands {changed.count(STAND_IN)} times in what it renders")
        before, _, after = changed.partition(STAND_IN)
        first = next(
            (i for i, (a, b) in enumerate(zip(self.text, before, strict=False)) if a != b),
            min(len(before), len(self.text)),
        )
        last = len(self.text) - len(after)
        if not self.text.endswith(after) or first > last:
            raise _unclear(index, "changes what comes after it")
        self._known[index] = first, last
        return first, last

    def _start(self, index: int, first: int) -> int:
        """Where generation starts: after the prompt that the template makes of the messages before; if that is no part of this text, after
        what this prompt has behind the content of its last message.
        """
        before = self.messages[:index]
        asked = self._render(before, True)
        if self.text.startswith(asked) and len(asked) <= first:
            return len(asked)
        content = self._changed(index - 1)[1] if index else len(self.text)
        behind = self._render([*before[:-1], *map(_with_stand_in, before[-1:])], True).partition(STAND_IN)[2]
        start = content + len(behind)
        if not behind or not self.text.startswith(behind, content) or start > first:
            raise _unclear(index, "has no start that can be told")
        return start


def _with_stand_in(message: dict[str, Any]) -> dict[str, Any]:
    """The message with another content. Where it calls tools, with another name in its first call."""
    if not message.get("tool_calls"):
        return message | {"content": STAND_IN}
    call, *rest = message["tool_calls"]
    return message | {"tool_calls": [{**call, "function": {**call["function"], "name": STAND_IN}}, *rest]}


def _unclear(index: int, why: str) -> DataError:
    return DataError("template", f"a turn cannot be told from the others: message {index + 1} {why}", field="messages")


def prompt_and_turns(
    conversations: Sequence[Turns], prompt: str, shared: int, messages: Sequence[Messages], train_on: str
) -> tuple[str, tuple[str, ...], tuple[list[Span], ...]]:
    """A row's prompt, what each completion adds to it up to the end of its last turn, and the characters in that which train.

    The only completion of a row has its prompt end where its first trained turn starts. Where there are several, `prompt` (the rendered
    `shared` messages) is the prompt of all, and turns after it train. `messages` are the conversations with their marks.
    """
    tails, trained = [], []
    only = len(conversations) == 1
    for whole, canonical in zip(conversations, messages, strict=True):
        chosen = _chosen(canonical, 0 if only else shared, train_on)
        if not chosen:
            raise DataError("template", "no assistant turn is marked to train", field="messages")
        spans = [whole.span(i) for i in chosen]
        if only:
            prompt = whole.text[: spans[0][0]]
        after(prompt, whole.text)
        stop = whole.span(len(whole.messages) - 1)[1]
        tails.append(whole.text[len(prompt) : stop])
        trained.append([(a - len(prompt), b - len(prompt)) for a, b in spans])
    return prompt, tuple(tails), tuple(trained)


def after(prompt: str, full: str) -> str:
    """What a conversation's text adds to its prompt's. Raises DataError where it does not start with that."""
    if not full.startswith(prompt) or not prompt:
        raise DataError(
            "template", "the chat template renders the prompt differently once it is answered", field="prompt"
        )
    return full[len(prompt) :]


def _chosen(messages: Sequence[Mapping[str, Any]], first: int, train_on: str) -> list[int]:
    """The places of the assistant messages that train, of those from place `first` on. A message without a mark counts as marked,
    as in OpenAI's files.
    """
    turns = [i for i, m in enumerate(messages) if i >= first and m["role"] == "assistant"]
    if train_on == "last":
        return turns[-1:]
    return [i for i in turns if train_on == "all" or messages[i].get("train", True)]


def token_places(
    ids: list[int],
    tail: str,
    cuts: Sequence[int],
    heads: Sequence[list[int] | None],
    pieces: Callable[[str], list[int]],
) -> tuple[list[int], dict[int, int], int]:
    """A completion's ids, the token at which each cut of its text lies, and how many cuts went through a token.

    `heads` are the ids of the text before each cut, tokenised with the prompt. The ids before a cut are those, as generation has them:
    where a token would hold characters from both sides, what follows is tokenised apart (by `pieces`).
    """
    out: list[int] = []
    places: dict[int, int] = {}
    at = splits = 0
    for cut, known in zip(cuts, heads, strict=True):
        head = known if known is not None and not at else pieces(tail[at:cut])
        if ids[: len(head)] != head:
            out, ids, at, splits = [*out, *head], pieces(tail[cut:]), cut, splits + 1
            head = []
        places[cut] = len(out) + len(head)
    return [*out, *ids], places, splits


def gaps(spans: Sequence[Span], length: int, kept: int) -> list[Span]:
    """What lies between the trained spans of a completion of `length` tokens, of which `kept` are left or to which its end was added. An
    end that was added trains with the turn before it.
    """
    trained = [(a, kept if b == length else min(b, kept)) for a, b in spans if a < kept]
    edges = [0, *(edge for span in trained for edge in span), kept]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
