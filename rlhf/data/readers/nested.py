"""Rows that hold many: SQuAD's articles of questions, and OpenAssistant's trees of messages, taken apart.

Between a file's rows and `formats`. What a row is taken apart into counts instead of it: each question, each message that could be answered, and
each reply that is left out of its ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.data.rows import Located, Quarantine, Row
from rlhf.recipe.sections import Format


@dataclass(frozen=True)
class Piece:
    """A part of a row: its data, or the field and reason for which it is set aside."""

    data: Row
    group: str | None
    fault: tuple[str, str] | None = None


def unnest(located: Located, format: Format | None, quarantine: Quarantine) -> Iterator[Located]:
    """The row, or the rows it holds. A file that is one object numbers them from 1; else they keep their row's number."""
    pieces = _pieces(located.data, format)
    if pieces is None:
        yield located
        return
    numbered = "data" in located.data or _is_flat(located.data)
    quarantine.rows_in -= 1
    count = 0
    for piece in pieces:
        count += 1
        quarantine.rows_in += 1
        row = count if numbered else located.row
        if piece.fault:
            quarantine.add(located.file, row, *piece.fault)
        else:
            yield Located(located.file, row, piece.data, group=piece.group)
    if not count:
        quarantine.rows_in += 1
        quarantine.add(located.file, located.row, None, "holds no question and no message")


def _pieces(data: Mapping[str, Any], format: Format | None) -> Iterator[Piece] | None:
    """The row's parts, or None for a row that is one."""
    if format in (None, "oasst") and "message_tree_id" in data and isinstance(data.get("prompt"), dict):
        return _tree(data)
    if format in (None, "squad"):
        if _holds(data.get("data"), "paragraphs"):
            return (piece for article in data["data"] for piece in _article(article))
        if _holds(data.get("paragraphs"), "qas"):
            return _article(data)
        if _holds(data.get("qas"), "question"):
            return _paragraph(data, None)
        if format == "squad" and _is_flat(data):
            return (Piece({"question": q, "answers": [{"text": a}]}, None) for q, a in data.items())
    return None


def _holds(value: Any, name: str) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) and name in item for item in value)


def _is_flat(data: Mapping[str, Any]) -> bool:
    """{question: answer}, where no name is one of a row's own."""
    return not data.keys() & {"question", "answers"} and all(isinstance(a, str) for a in data.values())


def _article(article: Any) -> Iterator[Piece]:
    paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
    if not isinstance(paragraphs, list):
        yield Piece({}, None, ("paragraphs", "is missing, or no list"))
        return
    for paragraph in paragraphs:
        yield from _paragraph(paragraph, article.get("title"))


def _paragraph(paragraph: Any, title: Any) -> Iterator[Piece]:
    questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
    if not isinstance(questions, list):
        yield Piece({}, None, ("qas", "is missing, or no list"))
        return
    title = paragraph.get("title", title)
    shared = {"title": title, "context": paragraph.get("context")}
    for question in questions:
        if isinstance(question, dict):
            yield Piece(shared | question, title if isinstance(title, str) else None)
        else:
            yield Piece({}, None, ("qas", f"must hold objects, not {type(question).__name__}"))


def _tree(tree: Mapping[str, Any]) -> Iterator[Piece]:
    """A row for each prompter's message: the messages up to it, and the assistant's replies to it."""
    group = str(tree["message_tree_id"])
    left: list[tuple[Any, list[Row] | None]] = [(tree["prompt"], [])]
    while left:
        message, before = left.pop()
        replies = (message.get("replies") or []) if isinstance(message, dict) else None
        if not isinstance(replies, list):
            yield Piece({}, group, ("replies", "must be a list of messages"))
            continue
        here = None  # below a message that was deleted
        if before is not None and not message.get("deleted"):
            here = [*before, {"role": message.get("role"), "content": message.get("text")}]
        if message.get("role") == "prompter":
            name = message.get("message_id")
            if here is None:
                yield Piece({}, group, ("prompt", f"was deleted, or follows a message that was: message {name}"))
            else:
                about = {"message_tree_id": group, "message_id": name, "lang": message.get("lang"), "prompt": here}
                yield from _replies(about, replies, group)
        left += [(reply, here) for reply in reversed(replies)]


def _replies(about: Row, replies: list[Any], group: str) -> Iterator[Piece]:
    ranked = []
    for reply in replies:
        if isinstance(reply, dict) and (reason := _left_out(reply, len(replies))):
            yield Piece({}, group, ("replies", f"{reason}: {reply.get('message_id')}"))
        elif isinstance(reply, dict):
            ranked.append({name: reply.get(name) for name in ("message_id", "text", "role", "rank")})
    if ranked:
        yield Piece(about | {"replies": ranked}, group)
    else:
        yield Piece({}, group, ("replies", f"none that could be ranked: message {about['message_id']}"))


def _left_out(reply: Mapping[str, Any], siblings: int) -> str | None:
    """Why a reply has no place in the ranking of its siblings."""
    if reply.get("deleted"):
        return "a reply that was deleted"
    return "a reply without a rank" if reply.get("rank") is None and siblings > 1 else None
