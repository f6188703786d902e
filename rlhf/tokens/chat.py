"""Messages through a tokenizer's chat template: as the template wants them, with their tools, and nothing left out of what it renders.

Used by `template`. A canonical message holds `tool_calls` as JSON text, and a prompt's first message the `tools` (see `rlhf.data.messages`);
a template gets both as objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from rlhf.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def as_template_has_them(messages: Sequence[dict[str, Any]], guard: Callable[[str], str]) -> list[dict[str, Any]]:
    """Canonical messages as a template reads them, with every text guarded; the first still holds the tools."""
    texts = ("content", "name", "tool_call_id", "reasoning_content")
    out: list[dict[str, Any]] = []
    for message in messages:
        new: dict[str, Any] = {"role": message["role"]} | {t: guard(message[t]) for t in texts if t in message}
        out.append(new | {o: json.loads(guard(message[o])) for o in ("tool_calls", "tools") if o in message})
    return out


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], generation: bool) -> str:
    """The messages' text. Raises DataError for messages that the template refuses, and for tools and calls that it leaves out."""
    bare, tools = _apart(messages)
    options: dict[str, Any] = {"tools": tools} if tools else {}
    try:
        text = tokenizer.apply_chat_template(bare, **options, tokenize=False, add_generation_prompt=generation)
    except Exception as e:  # jinja's own errors; the template decides what it takes
        raise DataError("template", f"the chat template refuses these messages: {e}", field="prompt") from e
    calls = [call for message in bare for call in message.get("tool_calls", ())]
    for what, functions in (("tools", tools or []), ("tool calls", calls)):
        if any(f["function"]["name"] not in cast(str, text) for f in functions):
            raise DataError(
                "template", f"the chat template leaves out the {what}: use one that has them", field="tools"
            )
    return cast(str, text)


def refuse_transcript(prompt: str) -> None:
    """Raises DataError for a text that is a conversation in HH's form: a chat template would make one user turn of all of it."""
    if prompt.lstrip().startswith("Human:") and prompt.rstrip().endswith("\n\nAssistant:"):
        raise DataError(
            "template",
            "a whole transcript would be one user turn of the chat template; say format: hh_turns, which reads its turns, or "
            "template.kind: plain",
            field="prompt",
        )


def generation_marks(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]]
) -> list[tuple[int, int]] | None:
    """The characters that the template itself marks as the assistant's, None for a template without `{% generation %}`."""
    from transformers.utils.chat_template_utils import render_jinja_template

    bare, tools = _apart(messages)
    template = tokenizer.get_chat_template(tools=tools)
    if not _GENERATION.search(template):
        return None
    options: dict[str, Any] = {"tools": tools, **tokenizer.special_tokens_map}
    rendered: Any = render_jinja_template([bare], chat_template=template, return_assistant_tokens_mask=True, **options)
    return [(start, stop) for start, stop in rendered[1][0]]


def _apart(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """The messages without their tools, and the tools."""
    tools = messages[0].get("tools") if messages else None
    return [{k: v for k, v in message.items() if k != "tools"} for message in messages], tools
