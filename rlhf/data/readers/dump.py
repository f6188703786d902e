"""A Stack Exchange site's Posts.xml: questions with their answers, in bounded memory.

An answer may come millions of lines after its question, so the posts go through a temporary SQLite file. It is as large as the dump's text,
and TMPDIR says where it is. Each `<row .../>` is parsed alone, so a broken one is lost alone. Answers become part of their question's row.
Other posts (tag wikis, answers without their question) are set aside and counted.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from rlhf.data.readers.text_files import BROKEN_OFF, TextFile
from rlhf.data.rows import Located
from rlhf.errors import DataError, SetupError

_NOT_ROWS = ("<?xml", "<!DOCTYPE", "<posts", "</posts", "<!--")
_MAX_LINES = 1000  # a row with more lines than this was never closed
QUESTION, ANSWER = "1", "2"
_TABLES = """
    PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA temp_store = FILE; PRAGMA cache_size = -65536;
    CREATE TABLE questions (id INTEGER PRIMARY KEY, place INTEGER, title TEXT, body TEXT, accepted INTEGER);
    CREATE TABLE answers (id INTEGER PRIMARY KEY, place INTEGER, question INTEGER, score INTEGER, body TEXT);
"""


def read_dump(file: TextFile) -> Iterator[Located]:
    """Rows {qid, title, question, accepted, answers: [{id, score, body}]} by question id; bodies are HTML as in the file.

    A row's number is that of the question's post in the file. Raises DataError for a file without a post, and SetupError if there is no room
    for the temporary file.
    """
    with tempfile.TemporaryDirectory(prefix="rlhf-dump-") as folder:
        base = sqlite3.connect(Path(folder) / "posts.sqlite3")
        try:
            base.executescript(_TABLES)
            places = _fill(base, file)
            base.execute("CREATE INDEX of_question ON answers (question, id)")
            if not places:
                raise DataError(file.name, "this file holds no <row>: is it the Posts.xml of a Stack Exchange dump?")
            yield from _questions(base, file)
            for place, name in base.execute(
                "SELECT place, id FROM answers WHERE question NOT IN (SELECT id FROM questions) ORDER BY place"
            ):
                file.reject(place, f"an answer without its question: {name}", "ParentId")
            if file.broken:
                file.reject(places + 1, f"{BROKEN_OFF}: {file.broken}")
        except sqlite3.OperationalError as error:
            raise SetupError(
                f"{file.name}: the temporary database in {folder}: {error}; set TMPDIR to a disk with room"
            ) from error
        finally:
            base.close()


def _fill(base: sqlite3.Connection, file: TextFile) -> int:
    """Put all posts into the tables. Returns how many there were."""
    place = 0
    for text in _row_texts(file):
        place += 1
        try:
            post = ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError) as error:
            if not (file.broken and not text.endswith("/>")):  # the end of a broken file has its own entry
                file.reject(place, f"not XML: {str(error)[:100]}")
            continue
        fault = _store(base, place, post)
        if fault:
            file.reject(place, fault[1], fault[0])
    base.commit()
    return place


def _row_texts(file: TextFile) -> Iterator[str]:
    """The file's `<row .../>` elements as text. A dump has one in each line; here one may have several lines."""
    parts: list[str] = []
    for number, line in enumerate(file.stream, 1):
        text = line.strip()
        if not parts and not text.startswith("<row"):
            if text and not text.startswith(_NOT_ROWS):
                file.reject(None, f"not a <row>: line {number}")
            continue
        parts.append(text)
        if text.endswith(("/>", "</row>")) or len(parts) >= _MAX_LINES:
            yield " ".join(parts)
            parts = []
    if parts:
        yield " ".join(parts)


def _store(base: sqlite3.Connection, place: int, post: ElementTree.Element) -> tuple[str, str] | None:
    """Put a post into its table. Returns (field, reason) for a post that does not belong in a table."""
    kind = post.get("PostTypeId")
    if kind not in (QUESTION, ANSWER):
        return "PostTypeId", f"neither a question nor an answer: {kind}"
    numbers = {}
    for name in ("Id", "AcceptedAnswerId") if kind == QUESTION else ("Id", "ParentId", "Score"):
        value = post.get(name)
        if value is None and name == "AcceptedAnswerId":
            continue
        if value is None or not value.removeprefix("-").isdecimal() or len(value) > 18:
            return name, "is missing" if value is None else f"must be a whole number: {value[:50]!r}"
        numbers[name] = int(value)
    body = post.get("Body")
    if body is None:
        return "Body", "is missing"
    try:
        if kind == QUESTION:
            row = (numbers["Id"], place, post.get("Title"), body, numbers.get("AcceptedAnswerId"))
            base.execute("INSERT INTO questions VALUES (?, ?, ?, ?, ?)", row)
        else:
            base.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
                (numbers["Id"], place, numbers["ParentId"], numbers["Score"], body),
            )
    except sqlite3.IntegrityError:
        return "Id", f"stands twice: {numbers['Id']}"
    return None


def _questions(base: sqlite3.Connection, file: TextFile) -> Iterator[Located]:
    answers = "SELECT id, score, body FROM answers WHERE question = ? ORDER BY id"
    for qid, place, title, body, accepted in base.execute(
        "SELECT id, place, title, body, accepted FROM questions ORDER BY id"
    ):
        found = [{"id": i, "score": s, "body": b} for i, s, b in base.execute(answers, (qid,))]
        data = {"qid": qid, "title": title, "question": body, "accepted": accepted, "answers": found}
        if located := file.accept(place, data, group=str(qid)):
            yield located
