"""KoChatGPT's four files: demonstrations, rankings, prompts, and conversations.

`ranking` is an order: ranking[0] is the INDEX of the best completion. Its first training code read it as the rank of each
completion, which flips the pairs of the two 3-cycles [1,2,0] and [2,0,1].

The demonstrations were written with Python's repr: a completion may start or end with a stray quote and hold a backslash and an n
for a newline. `kochatgpt_sft` mends that; the other files' texts stay as they are, as their rankings were given to them so.
"""

from __future__ import annotations

import re

from rlhf.data.formats.fields import Fields, Spec
from rlhf.data.formats.orders import order
from rlhf.data.formats.plain import prompt
from rlhf.data.messages import dialogue
from rlhf.data.rows import Row

_COMPLETION = re.compile(r"completion_(\d+)")
_QUOTE = re.compile(r"(?<!\\)'")


def _rm(f: Fields) -> Row:
    found = (m for name, value in f.data.items() if value is not None and (m := _COMPLETION.fullmatch(name)))
    numbers = sorted(int(m.group(1)) for m in found)
    if numbers != list(range(len(numbers))) or len(numbers) < 2:
        raise f.error("completion_0", "needs completion_0, completion_1, ... without a gap")
    completions = [f.text(f"completion_{n}") for n in numbers]
    return {"prompt": f.text("prompt"), "completions": completions, "ranking": order(f, len(completions))}


def _sft(f: Fields) -> Row:
    completion = _without_repr(f.text("completion"))
    if not completion.strip():
        raise f.error("completion", "is empty")
    return {"prompt": f.text("prompt"), "completion": completion}


def _without_repr(text: str) -> str:
    """The text that was written by Python's `repr`, whole or cut off.

    `\\n` and `\\'` are read as escapes only where the text holds no real newline. A text that holds one was not written by repr, and
    its backslashes are its own (in code, for instance).
    """
    inner = unquoted(text.strip())
    if len(inner) == len(text.strip()):
        inner = text
    return inner if "\n" in inner.strip() else inner.replace("\\n", "\n").replace("\\'", "'")


def unquoted(text: str) -> str:
    """A stripped text without two quotes around the whole, or without one at an end that has no partner. Quotes that pair up inside stay."""
    quotes = len(_QUOTE.findall(text))
    if quotes == 2 and text[0] == text[-1] == "'":
        return text[1:-1]
    if quotes % 2 and text[0] == "'":
        return text[1:]
    return text[:-1] if quotes % 2 and text[-1] == "'" else text


def _chat(f: Fields) -> Row:
    return dialogue(f, "conversation")


RM = Spec(_rm, (("prompt", "completion_0", "completion_1", "ranking"),), lambda f: True)
SFT = Spec(_sft, (("prompt", "completion"),), None)
PPO = Spec(prompt, (("prompt",),), None)
CHAT = Spec(_chat, (("conversation",),), lambda f: isinstance(f.data["conversation"], list))
