"""OpenAssistant's trees of messages as rankings. A file's row is a whole tree, or (on the hub) one message.

Used by `nested`. Every message of a prompter with ranked replies becomes a row; its prompt is the messages up to it. A reply is left out,
and counted, if it was deleted, or if it has siblings and no rank. Messages below a deleted message are left out too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.rows import Located, Row

_ROW = "row of the file"


@dataclass(frozen=True)
class Piece:
    """One of several rows that a row held: its data, or the field and reason why it is set aside. `row`: its own row number, if it has one."""

    data: Row
    group: str | None
    fault: tuple[str, str] | None = None
    row: int | None = None


def is_message(data: Mapping[str, Any]) -> bool:
    """Whether a row is one message of a tree."""
    return "message_tree_id" in data and "parent_id" in data and "text" in data and "prompt" not in data


def in_trees(rows: Sequence[Located]) -> Iterator[Piece]:
    """The pieces of one tree, from rows that are its messages and name their parents."""
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
            reason = f"the message that it replies to is not beside it: message {name}"
            yield Piece({}, group, ("parent_id", reason), node[_ROW])
            yield from ranked_replies(group, node, is_whole=False)
    for root in roots:
        yield from ranked_replies(group, root)


def ranked_replies(group: str, root: Any, *, is_whole: bool = True) -> Iterator[Piece]:
    """A piece for each message of a prompter: the messages up to it, and the replies to it. `is_whole`: the root starts the conversation."""
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
                reason = f"was deleted, or comes after a message that was deleted or is missing: message {name}"
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
        yield Piece({}, group, ("replies", f"no reply could be ranked: message {about['message_id']}"), row)


def _left_out(reply: Mapping[str, Any], siblings: int) -> str | None:
    """Why a reply is not in the ranking of its siblings, or None."""
    if reply.get("deleted"):
        return "a reply that was deleted"
    return "a reply without a rank" if reply.get("rank") is None and siblings > 1 else None
