"""JSON and JSON Lines files as rows. A row that cannot be read goes to the quarantine.

Used by `sources`. Some real files have the wrong name, so the text decides: an array is read as an array, lines are read as lines, and
KoChatGPT's conversations as conversations. Three things are different from `datasets.load_dataset("json")`: one bad row does not end the
reading, a row with a repeated key is a bad row, and `NaN` is not a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NoReturn

from rlhf.data.readers.chat import START, read_conversations
from rlhf.data.readers.text_files import BROKEN_OFF, TextFile
from rlhf.data.rows import Located
from rlhf.errors import DataError
from rlhf.recipe.sections import Format

_SPACE = re.compile(r"[ \t\r\n]*")


class _BadRow(ValueError):
    """JSON that can be parsed and is not allowed as a row."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [k for k, _ in pairs]
        raise _BadRow(f"duplicate key: {next(k for k in names if names.count(k) > 1)!r}")
    return out


def _no_constant(name: str) -> NoReturn:
    raise _BadRow(f"NaN and Infinity are not numbers: {name}")


_STRICT = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
_LENIENT = json.JSONDecoder(parse_int=str)  # finds only where a value ends that is not allowed


def read_json(file: TextFile, format: Format | None = None, *, is_text: bool = False) -> Iterator[Located]:
    """The rows of a JSON array of objects, or of lines with one object each. The text decides which, not the name.

    `is_text` says that the name does not promise JSON. Raises DataError for an array that is not JSON (with line and column), and for
    text that is neither an array nor lines.
    """
    lines = iter(file.stream)
    head = _up_to_text(lines)
    first = head[-1].strip() if head else ""
    if first == START:
        yield from read_conversations(file, chain(head, lines))
        return
    if is_text and not first.startswith(("[", "{")):
        raise DataError(file.name, f"this text file holds neither JSON nor conversations; those start with {START}")
    if first.startswith("["):
        is_array = not _is_json(first)
        if not is_array:  # a list on one line is the whole array, unless another line of JSON follows
            head += _up_to_text(lines)
            second = head[-1].strip()
            is_array = second in ("", first) or not _is_json(second)
        if is_array:
            yield from _array(file, "".join([*head, *lines]))
            return
    if first == "{":
        head += lines
        if (data := _one_object(file.name, "".join(head), format)) is not None:
            if located := file.accept(1, data):
                yield located
            return
    yield from _json_lines(file, chain(head, lines))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _up_to_text(lines: Iterator[str]) -> list[str]:
    """The lines up to the next line that is not blank, and that line."""
    out: list[str] = []
    for line in lines:
        out.append(line)
        if line.strip():
            break
    return out


def _json_lines(file: TextFile, lines: Iterable[str]) -> Iterator[Located]:
    end = 1
    for number, line in enumerate(lines, 1):
        end = number + 1
        text = line.strip()
        if not text:
            continue
        try:
            data, stop = _STRICT.raw_decode(text)
            if stop != len(text):
                raise json.JSONDecodeError("Extra data", text, stop)
        except json.JSONDecodeError as e:
            if file.broken and not line.endswith("\n"):
                end = number  # the end of a broken file has its own entry
            else:
                file.reject(number, f"not JSON: {e.msg} (column {e.colno})")
        except (ValueError, RecursionError) as e:
            file.reject(number, str(e) if isinstance(e, _BadRow) else f"not JSON: {e}")
        else:
            if located := file.accept(number, data):
                yield located
    if file.broken:
        file.reject(end, f"{BROKEN_OFF}: {file.broken}")


def _array(file: TextFile, text: str) -> Iterator[Located]:
    at, row = _skip(text, text.index("[") + 1), 0
    closed = text.startswith("]", at)
    at += closed
    while not closed:
        row, start = row + 1, at
        try:
            data, at, reason = _element(text, start)
            if reason is None:
                if located := file.accept(row, data):
                    yield located
            else:
                file.reject(row, reason)
            at = _skip(text, at)
            closed = text.startswith("]", at)
            if not closed and not text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            at = _skip(text, at + 1)
        except (json.JSONDecodeError, RecursionError) as e:
            if file.broken:
                return file.reject(row if at == start else row + 1, f"{BROKEN_OFF}: {file.broken}")
            detail = f"{e.msg} at line {e.lineno}, column {e.colno}" if isinstance(e, json.JSONDecodeError) else str(e)
            raise DataError(file.name, f"the JSON array is broken: {detail}", row=row) from e
    if text[at:].strip():
        end = json.JSONDecodeError("", text, at)
        raise DataError(file.name, f"there is text after the JSON array at line {end.lineno}, column {end.colno}")
    if file.broken:
        file.reject(row + 1, f"{BROKEN_OFF}: {file.broken}")


def _element(text: str, at: int) -> tuple[Any, int, str | None]:
    """(value, where it ends, why it is not allowed as a row) of the JSON value that starts here."""
    try:
        return *_STRICT.raw_decode(text, at), None
    except json.JSONDecodeError:
        raise
    except ValueError as e:
        return *_LENIENT.raw_decode(text, at), str(e) if isinstance(e, _BadRow) else f"not JSON: {e}"


def _one_object(name: str, text: str, format: Format | None) -> dict[str, Any] | None:
    """The object of a file that is one object: SQuAD's, or {question: answer} if the recipe says so. None if the text is no object.

    Raises DataError for any other object: it is not a list of rows.
    """
    try:
        data: dict[str, Any] = _STRICT.decode(text)
    except _BadRow as e:
        raise DataError(name, f"one JSON object with a {e}") from e
    except (ValueError, RecursionError):
        return None
    articles = data.get("data")
    if isinstance(articles, list) and any(isinstance(a, dict) and "paragraphs" in a for a in articles):
        return data
    if format == "squad" and all(isinstance(answer, str) for answer in data.values()):
        return data
    keys = ", ".join(list(data)[:20])
    raise DataError(
        name,
        f"one JSON object (keys {keys}), not rows: give an array of objects or one object a line; "
        "an object of questions and their answers is read with format: squad",
    )


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
