"""OpenAssistant's trees of messages as rankings: whole trees a row, or a message a row as the hub has them.

Below `nested`. Every prompter's message with ranked replies becomes a row whose prompt is the messages up to it. A reply is left out, and counted, where
it was deleted or has no rank beside siblings; so is what follows a deleted message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.rows import Located, Row

_ROW = "row of the file"


@dataclass(frozen=True)
class Piece:
    """A part of a row: its data, or the field and reason for which it is set aside; the file's row if it has one of its own."""

    data: Row
    group: str | None
    fault: tuple[str, str] | None = None
    row: int | None = None


def is_message(data: Mapping[str, Any]) -> bool:
    """Whether a row is one message of a tree."""
    return "message_tree_id" in data and "parent_id" in data and "text" in data and "prompt" not in data


def in_trees(rows: Sequence[Located]) -> Iterator[Piece]:
    """The messages of one tree, that name their parents, as `ranked_replies` has them."""
    group = str(rows[0].data["message_tree_id"])
    nodes: dict[Any, dict[str, Any]] = {}
    for located in rows:
        name = located.data.get("message_id")
        if name is None or name in nodes:
            reason = "is missing" if name is None else f"stands twice in the tree: {name}"
            yield Piece({}, group, ("message_id", reason), located.row)
        else:
            nodes[name] = {**located.data, "replies": [], _ROW: located.row}
    roots = []
    for name, node in nodes.items():
        parent = node.get("parent_id")
        if parent is None:
            roots.append(node)
        elif parent in nodes:
            nodes[parent]["replies"].append(node)
        else:
            reason = f"its message is not among the rows beside it: message {name}"
            yield Piece({}, group, ("parent_id", reason), node[_ROW])
            yield from ranked_replies(group, node, is_whole=False)
    for root in roots:
        yield from ranked_replies(group, root)


def ranked_replies(group: str, root: Any, *, is_whole: bool = True) -> Iterator[Piece]:
    """A piece for each prompter's message: the messages up to it, and the assistant's replies to it. `is_whole`: whether the root starts the conversation."""
    left: list[tuple[Any, list[Row] | None]] = [(root, [] if is_whole else None)]
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
                reason = f"was deleted, or follows a message that was or is missing: message {name}"
                yield Piece({}, group, ("prompt", reason), message.get(_ROW))
            else:
                about = {"message_tree_id": group, "message_id": name, "lang": message.get("lang"), "prompt": here}
                yield from _ranked(about, replies, message.get(_ROW))
        left += [(reply, here) for reply in reversed(replies)]


def _ranked(about: Row, replies: list[Any], row: int | None) -> Iterator[Piece]:
    group = about["message_tree_id"]
    ranked = []
    for reply in replies:
        if isinstance(reply, dict) and (reason := _left_out(reply, len(replies))):
            yield Piece({}, group, ("replies", f"{reason}: {reply.get('message_id')}"), reply.get(_ROW))
        elif isinstance(reply, dict):
            ranked.append({name: reply.get(name) for name in ("message_id", "text", "role", "rank")})
    if ranked:
        yield Piece(about | {"replies": ranked}, group, None, row)
    else:
        yield Piece({}, group, ("replies", f"none that could be ranked: message {about['message_id']}"), row)


def _left_out(reply: Mapping[str, Any], siblings: int) -> str | None:
    """Why a reply has no place in the ranking of its siblings."""
    if reply.get("deleted"):
        return "a reply that was deleted"
    return "a reply without a rank" if reply.get("rank") is None and siblings > 1 else None
