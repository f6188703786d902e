"""Conversations: what a list of messages must look like to be a prompt or a completion.

Used by `formats`. A message is `{role, content}` (ShareGPT's `{from, value}` is read as one). A prompt ends with a turn
to be answered; a completion is exactly one assistant message, since every one of its tokens is trained. TRL takes a
dialogue's several last turns as one completion and so trains the user's words too; here such a row is quarantined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf.data.rows import Message, Row

if TYPE_CHECKING:
    from rlhf.data.formats.fields import Fields

ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {
    "human": "user",  # ShareGPT
    "gpt": "assistant",
    "prompter": "user",  # OpenAssistant
    "사람": "user",  # KoChatGPT
    "챗봇": "assistant",
}


def as_messages(f: Fields, field: str, value: Any) -> list[Message]:
    """A list of messages, or one message alone, with role and content and nothing else."""
    items = value if isinstance(value, list) else [value]
    return [_message(f, field, item) for item in items]


def _message(f: Fields, field: str, item: Any) -> Message:
    if not isinstance(item, dict):
        raise f.error(field, f"must hold messages with role and content, not {type(item).__name__}")
    if item.get("tool_calls"):
        raise f.error(field, "holds a tool call, which is not supported")
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise f.error(field, f"holds a message without a known role: {role!r:.80}")
    if not isinstance(content, str) or not content.strip():
        raise f.error(field, "holds a message without text")
    return {"role": ROLES[role], "content": content}


def conversational_prompt(f: Fields, field: str, messages: list[Message]) -> list[Message]:
    """Messages that an assistant is to answer."""
    if not messages or messages[-1]["role"] in ("assistant", "system"):
        raise f.error(field, "must end with a turn to be answered")
    return messages


def conversational_completion(f: Fields, field: str, value: Any) -> list[Message]:
    """One assistant message in a list (text is taken as its content)."""
    if isinstance(value, str):
        value = {"role": "assistant", "content": value}
    messages = as_messages(f, field, value)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise f.error(field, "must be one assistant message")
    return messages


def dialogue_pair(f: Fields) -> Row:
    """TRL's implicit prompt: two whole dialogues, alike but for the last assistant message."""
    chosen, rejected = (as_messages(f, k, f.get(k)) for k in ("chosen", "rejected"))
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise f.error(name, "must be a dialogue that ends with an assistant message")
    if chosen[:-1] != rejected[:-1]:
        raise f.error("rejected", "does not share chosen's prompt")
    prompt = conversational_prompt(f, "chosen", chosen[:-1])
    return {"prompt": prompt, "chosen": chosen[-1:], "rejected": rejected[-1:]}


def dialogue(f: Fields, field: str, before: Sequence[Message] = ()) -> Row:
    """A dialogue, with messages to put before it, as a demonstration of its last assistant message."""
    messages = [*before, *as_messages(f, field, f.list(field))]
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise f.error(field, "must be a dialogue that ends with an assistant message")
    return {"prompt": conversational_prompt(f, field, messages[:-1]), "completion": messages[-1:]}
