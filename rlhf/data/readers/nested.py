"""Rows that hold several: SQuAD's articles of questions, and OpenAssistant's trees of messages, taken apart into pieces.

Stands between a file's rows and `formats`. `trees` has the code for trees. The pieces are counted, and the row that held them is not:
each question, each message that could be answered, and each reply that is left out of its ranking.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rlhf.data.readers.trees import Piece, in_trees, is_message, ranked_replies
from rlhf.data.rows import Located, Quarantine
from rlhf.recipe.sections import Format


def unnest(rows: Iterable[Located], format: Format | None, quarantine: Quarantine) -> Iterator[Located]:
    """The rows; a row that holds several is replaced by its pieces. Messages of one tree that follow each other become pieces together.

    A row is counted when it is given out. A row that is kept back until the next one comes, or that nobody asks for, is not in `rows_in`.
    """
    held: list[Located] = []
    for located in rows:
        message = format in (None, "oasst") and is_message(located.data)
        quarantine.rows_in -= 1
        if held and not (message and _belong(held[0], located)):
            yield from _given(in_trees(held), held[0], quarantine)
            held = []
        if message:
            held.append(located)
            continue
        pieces = _pieces(located.data, format)
        if pieces is not None:
            yield from _given(pieces, located, quarantine)
        else:
            quarantine.rows_in += 1
            yield located
    if held:
        yield from _given(in_trees(held), held[0], quarantine)


def _belong(one: Located, other: Located) -> bool:
    return one.file == other.file and one.data["message_tree_id"] == other.data["message_tree_id"]


def _given(pieces: Iterable[Piece], whole: Located, quarantine: Quarantine) -> Iterator[Located]:
    """The pieces as rows. In a file that is one object they are numbered from 1; else they have the number of their own row."""
    numbered = "data" in whole.data or _is_flat(whole.data)
    count = 0
    for piece in pieces:
        count += 1
        quarantine.rows_in += 1
        row = count if numbered else piece.row or whole.row
        if piece.fault:
            quarantine.add(whole.file, row, *piece.fault)
        else:
            yield Located(whole.file, row, piece.data, group=piece.group)
    if not count:
        quarantine.rows_in += 1
        quarantine.add(whole.file, whole.row, None, "holds no question and no message")


def _pieces(data: Mapping[str, Any], format: Format | None) -> Iterator[Piece] | None:
    """The row's pieces, or None for a row that holds only itself."""
    if format in (None, "oasst") and "message_tree_id" in data and isinstance(data.get("prompt"), dict):
        return ranked_replies(str(data["message_tree_id"]), data["prompt"])
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
    """Whether this is {question: answer}, and not a row with columns."""
    return not data.keys() & {"question", "answers"} and all(isinstance(a, str) for a in data.values())


def _article(article: Any) -> Iterator[Piece]:
    paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
    if not isinstance(paragraphs, list):
        yield Piece({}, None, ("paragraphs", "is missing, or is not a list"))
        return
    for paragraph in paragraphs:
        yield from _paragraph(paragraph, article.get("title"))


def _paragraph(paragraph: Any, title: Any) -> Iterator[Piece]:
    questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
    if not isinstance(questions, list):
        yield Piece({}, None, ("qas", "is missing, or is not a list"))
        return
    title = paragraph.get("title", title)
    shared = {"title": title, "context": paragraph.get("context")}
    for question in questions:
        if isinstance(question, dict):
            yield Piece(shared | question, title if isinstance(title, str) else None)
        else:
            yield Piece({}, None, ("qas", f"must hold objects, not {type(question).__name__}"))
