"""Conversations: what a list of messages must look like to be a prompt or a completion.

Used by `formats`. A message is `{role, content}` (ShareGPT's `{from, value}` is read as one), and where the file has them

    tool_calls          JSON text: a list of {type, function: {name, arguments}}, with the arguments as an object
    name, tool_call_id, reasoning_content       texts
    train               whether an assistant's turn is marked to train: OpenAI's `weight` (0 or 1) or `train`
    tools               on a prompt's first message, JSON text: the tools that the row offers

`tool_calls` and `tools` are text, since one column of a parquet file has one type. A prompt ends with a turn to be answered. A completion
starts and ends with an assistant's message; which of its turns train is the recipe's choice (`data.template.train_on`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf.data.rows import Message, Row

if TYPE_CHECKING:
    from rlhf.data.formats.fields import Fields

ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {
    "developer": "system",  # OpenAI
    "human": "user",  # ShareGPT
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "prompter": "user",  # OpenAssistant
    "사람": "user",  # KoChatGPT
    "챗봇": "assistant",
}


def as_messages(f: Fields, field: str, value: Any) -> list[Message]:
    """A list of messages, or one message alone. Raises DataError, with the message's number, for what no message may hold."""
    items = value if isinstance(value, list) else [value]
    return [_message(f, field, item, number) for number, item in enumerate(items, 1)]


def _message(f: Fields, field: str, item: Any, number: int) -> Message:
    if not isinstance(item, dict):
        raise f.error(field, f"must hold messages with role and content, not {type(item).__name__}")
    if item.get("function_call"):
        raise f.error(field, "holds a function_call, an older form: write it as tool_calls")
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise f.error(field, f"holds a message without a known role: {role!r:.80}")
    calls = item.get("tool_calls")
    if role == "function_call":
        calls, content = [{"type": "function", "function": _json(f, field, content, dict)}], None
    message: Message = {"role": ROLES[role], "content": _text(f, field, content, blank=bool(calls), number=number)}
    if calls:
        if message["role"] != "assistant":
            raise f.error(field, f"holds a tool call that is not the assistant's: message {number}")
        message["tool_calls"] = json.dumps(
            [_call(f, field, c) for c in _json(f, field, calls, list)], ensure_ascii=False
        )
    for name in ("name", "tool_call_id", "reasoning_content"):
        if isinstance(item.get(name), str) and item[name]:
            message[name] = item[name]
    if isinstance(item.get("tools"), str) and item["tools"]:  # a row that was built before
        message["tools"] = item["tools"]
    return message | _mark(f, field, item, message["role"])


def _text(f: Fields, field: str, content: Any, *, blank: bool, number: int) -> str:
    """A message's text; of content parts, the texts joined."""
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
                raise f.error(field, f"holds content that is no text: message {number} has a part of type {kind!r:.40}")
        content = "".join(part["text"] for part in content)
    if blank and content is None:
        return ""
    if not isinstance(content, str) or not (blank or content.strip()):
        raise f.error(field, "holds a message without text")
    return content


def _call(f: Fields, field: str, call: Any) -> dict[str, Any]:
    """A tool call with its arguments as an object, as chat templates take it."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise f.error(field, "holds a tool call without a function's name")
    arguments = _json(f, field, function.get("arguments") or {}, dict)
    given = {k: v for k, v in call.items() if k in ("id", "index") and v is not None}
    return {"type": "function", **given, "function": {"name": function["name"], "arguments": arguments}}


def _json(f: Fields, field: str, value: Any, kind: type) -> Any:
    """A value of that type; a text may hold it as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise f.error(field, f"holds a tool or a tool call that is no JSON: {value!r:.60}") from None
    if not isinstance(value, kind):
        raise f.error(field, f"holds a tool or a tool call that is no {'list' if kind is list else 'object'}")
    return value


def _mark(f: Fields, field: str, item: dict[str, Any], role: str) -> Message:
    """Whether the message says that it trains, by `train` or `weight`. Only an assistant's can."""
    marks = {name: item[name] for name in ("train", "weight") if item.get(name) is not None}
    if role != "assistant" or not marks:
        return {}
    if any(value not in (0, 1) for value in marks.values()):
        raise f.error(field, f"holds a mark that is neither 0 nor 1: {marks}")
    if len(set(map(bool, marks.values()))) > 1:
        raise f.error(field, f"holds marks that do not agree: {marks}")
    return {"train": bool(next(iter(marks.values())))}


def with_tools(f: Fields, messages: list[Message]) -> list[Message]:
    """The messages with the row's `tools` on the first."""
    if not f.has("tools") or f.data["tools"] in ("", [], "[]"):
        return messages
    tools = _json(f, "tools", f.data["tools"], list)
    wrapped = [
        tool if isinstance(tool, dict) and "function" in tool else {"type": "function", "function": tool}
        for tool in tools
    ]
    if any(
        not isinstance(tool["function"], dict) or not isinstance(tool["function"].get("name"), str) for tool in wrapped
    ):
        raise f.error("tools", "holds a tool without a name")
    return [messages[0] | {"tools": json.dumps(wrapped, ensure_ascii=False)}, *messages[1:]]


def conversational_prompt(f: Fields, field: str, messages: list[Message]) -> list[Message]:
    """Messages that an assistant is to answer."""
    if not messages or messages[-1]["role"] in ("assistant", "system"):
        raise f.error(field, "must end with a turn to be answered")
    return with_tools(f, messages)


def conversational_completion(f: Fields, field: str, value: Any) -> list[Message]:
    """Messages from an assistant's to an assistant's, most often one (text is taken as its content)."""
    if isinstance(value, str):
        value = {"role": "assistant", "content": value}
    messages = as_messages(f, field, value)
    if not messages or messages[0]["role"] != "assistant" or messages[-1]["role"] != "assistant":
        raise f.error(field, "must start and end with an assistant message")
    return messages


def dialogue_pair(f: Fields) -> Row:
    """TRL's implicit prompt: two whole dialogues. What they share is the prompt; they differ in a last answer or in a tail of turns."""
    return pair_of_dialogues(f, *(as_messages(f, k, f.get(k)) for k in ("chosen", "rejected")))


def pair_of_dialogues(f: Fields, chosen: list[Message], rejected: list[Message]) -> Row:
    """A pair of two dialogues that start alike. Both must go on with an assistant's message, and end with one."""
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise f.error(name, "must be a dialogue that ends with an assistant message")
    bare = [[{k: v for k, v in m.items() if k != "train"} for m in messages] for messages in (chosen, rejected)]
    if bare[0] == bare[1]:
        raise f.error("rejected", "is equal to chosen")
    shared = next((i for i, (a, b) in enumerate(zip(*bare, strict=False)) if a != b), min(map(len, bare)))
    if shared == 0:
        raise f.error("rejected", "does not share chosen's prompt")
    if shared == min(map(len, bare)):
        raise f.error("rejected", "says what chosen says and ends sooner or later: there is no turn to compare")
    if any(messages[shared]["role"] != "assistant" for messages in bare):
        raise f.error(
            "rejected", f"differs from chosen first in a turn that is not the assistant's: message {shared + 1}"
        )
    prompt = conversational_prompt(f, "chosen", chosen[:shared])
    return {"prompt": prompt, "chosen": chosen[shared:], "rejected": rejected[shared:]}


def dialogue(f: Fields, field: str, before: Sequence[Message] = ()) -> Row:
    """A dialogue, with messages to put before it, as a demonstration of its last assistant message."""
    messages = [*before, *as_messages(f, field, f.list(field))]
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise f.error(field, "must be a dialogue that ends with an assistant message")
    return {"prompt": conversational_prompt(f, field, messages[:-1]), "completion": messages[-1:]}
