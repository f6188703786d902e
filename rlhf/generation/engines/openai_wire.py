"""The OpenAI protocol as pure functions: they make a request's body and read a reply's choices. `openai_server` sends them.

Settings that the protocol does not have (top-k and others) are sent as vLLM's extra keys. vLLM gets every setting, because it
takes unset ones from the model's own generation_config.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, cast

from rlhf.data.rows import Message, Text
from rlhf.generation.engines.sampling import last_line_pattern
from rlhf.recipe.synthesis import TextSampling

EXTRAS = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "structured_outputs",
)  # not in the protocol; vLLM and others have them
NOT_ENDED = ("length", "content_filter", "abort", "error", None)


@dataclass(frozen=True)
class Choices:
    """The choices of one reply, in the server's order."""

    texts: list[str]
    ended: list[bool]
    prompt_tokens: int
    completion_tokens: int


def settings(
    sampling: TextSampling, *, vllm: bool, choices: list[str] | None, limit_key: str = "max_tokens"
) -> dict[str, Any]:
    """The part of the body that all requests share."""
    body: dict[str, Any] = {
        limit_key: sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if sampling.stop:
        body["stop"] = sampling.stop
    extras = {"top_k": (sampling.top_k, 0), "min_p": (sampling.min_p, 0.0)}
    extras["repetition_penalty"] = (sampling.repetition_penalty, 1.0)
    body |= {key: value for key, (value, off) in extras.items() if vllm or value != off}
    if vllm and choices:
        body["structured_outputs"] = {"regex": last_line_pattern(choices)}
    return body


def addressed(prompt: Text | list[int], chat: Literal["chat", "plain"]) -> tuple[str, dict[str, Any]]:
    """The endpoint for a prompt, and the part of the body that holds it. Token ids are the prompt of a plain completion.

    Raises ValueError for messages to an engine that takes plain text.
    """
    if isinstance(prompt, str) and chat == "chat":
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return "/completions", {"prompt": prompt}
    if chat == "plain":
        raise ValueError("a list of messages needs an engine with chat: chat")
    messages = cast(list[Message], prompt)
    tools = {"tools": json.loads(messages[0]["tools"])} if messages and "tools" in messages[0] else {}
    return "/chat/completions", {"messages": [_message(message) for message in messages], **tools}


def _message(message: Message) -> dict[str, Any]:
    """A canonical message as a server takes it: calls as objects whose arguments are JSON text, and no mark of what trains."""
    sent = {key: value for key, value in message.items() if key not in ("tools", "train")}
    if "tool_calls" in sent:
        calls = json.loads(sent["tool_calls"])
        for call in calls:
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        sent["tool_calls"] = calls
    return sent


def parse_choices(text: str, wanted: int) -> Choices:
    """The choices in a reply, at most `wanted`. Raises ValueError with a short reason for anything else.

    A message without content (a refusal, or a model that only thought) is an empty text.
    """
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the reply is not whole JSON") from None
    found = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(found, list) or not all(isinstance(choice, dict) for choice in found):
        raise ValueError("the reply has no list of choices")
    if not found:
        raise ValueError("the reply has no choices")
    if all(type(choice.get("index")) is int for choice in found):
        found = sorted(found, key=lambda choice: choice["index"])
    found = found[:wanted]
    texts = [_text(choice) for choice in found]
    usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
    paid = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, completion_tokens = (count if type(count) is int and count >= 0 else 0 for count in paid)
    ended = [choice.get("finish_reason") not in NOT_ENDED for choice in found]
    return Choices(texts, ended, prompt_tokens, completion_tokens)


def error_of(text: str) -> tuple[str, str, str]:
    """A failed reply's message, code and parameter, as far as it names them; its first 300 characters if it is not JSON."""
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        reply = None
    error = reply.get("error", reply) if isinstance(reply, dict) else None
    if not isinstance(error, dict):
        message = error if isinstance(error, str) else text
        return " ".join(message.split())[:300] or "no message", "", ""
    message = error.get("message") or error.get("detail") or text
    return " ".join(str(message).split())[:300], str(error.get("code") or ""), str(error.get("param") or "")


def _text(choice: dict[str, Any]) -> str:
    if "message" in choice:
        message = choice["message"]
        content = message.get("content") if isinstance(message, dict) else 0
        content = "" if content is None else content
    else:
        content = choice.get("text")
    if not isinstance(content, str):
        raise ValueError("a choice of the reply has no text")
    return content
