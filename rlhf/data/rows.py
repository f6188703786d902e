"""The row types that every part of `data` speaks: a located row, the quarantine, and the five canonical kinds.

A canonical row is a plain dict with exactly these fields, nothing else:

    demonstration  {prompt, completion}                     ended?
    preference     {prompt, chosen, rejected, margin?}      margin = score(chosen) - score(rejected), absent if unknown;
                                                            chosen_ended?, rejected_ended?
    ranking        {prompt, completions, ranking | scores}  ranking[0] = INDEX of the best completion, then the next;
                   models?, rationales? (a text each)       neither ranking nor scores between the steps of a build only;
                                                            ended? (true or false for each completion)
    unpaired       {prompt, completion, label}              label: whether the completion is a good one; ended?
    prompt         {prompt}

`ended` is false for a completion that was cut off, at a token limit for instance: the template puts no EOS after it. A row
without the field says that all of its completions ended.

A prompt is a string, or a list of `{role, content}` messages; with messages each completion is a list of one assistant message, or
of more messages from an assistant's to an assistant's (see `messages`). It is the form that TRL calls conversational. Ground floor of `data`: nothing heavy is imported here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TextIO

from rlhf.errors import DataError

Kind = Literal["demonstration", "preference", "ranking", "unpaired", "prompt"]
Message = dict[str, Any]
Text = str | list[Message]
Row = dict[str, Any]
BLOCK_ROWS = 8192  # rows handled at once,
BLOCK_CHARACTERS = 1 << 25  # or so many characters of text
LABEL_FALSE = "label false: not an answer to imitate"


@dataclass(frozen=True)
class Located:
    """A row and where it came from. `row` is 1-based: the line in JSON Lines, else the index among the file's rows.

    Rows with the same `unit` stand for one thing: the pairs of one ranking, the rows of one `group` (see SourceSection).
    `columns` are those of the file's own that a reader asked to keep beside the canonical ones (see `load.Stream`).
    """

    file: str
    row: int
    data: Row
    unit: int = 0
    group: str | None = None
    columns: Row | None = None

    def __str__(self) -> str:
        """`file:row`, as messages and reports name a row."""
        return f"{self.file}:{self.row}"

    def error(self, reason: str, field: str | None = None) -> DataError:
        """A DataError that points at this row."""
        return DataError(self.file, reason, row=self.row, field=field)


KEPT_ENTRIES = 1000
KEPT_REASONS = 1000  # a reason may hold a field's name, and a hostile file has no end of those


class Quarantine:
    """Rows that were read but cannot be used, each with its reason; `rows_in` counts every row seen.

    Counts are exact; of the entries the first 1,000 are kept in memory, and all go to the file `sink` where there is one, as JSON lines.
    `strict` raises the first as a DataError. A broken-off file counts as one row: what it held is unknown, that it broke is not passed over.
    """

    def __init__(self, *, strict: bool = False, sink: TextIO | None = None) -> None:
        self.rows_in = 0
        self.entries: list[dict[str, Any]] = []
        self._strict, self._sink = strict, sink
        self._counts: Counter[str] = Counter()

    def add(self, file: str, row: int | None, field: str | None, reason: str) -> None:
        """Set a row aside."""
        if self._strict:
            raise DataError(file, reason, row=row, field=field)
        if len(reason) > 500:
            reason = f"{reason[:497]}..."
        entry = {"file": file, "row": row, "field": field, "reason": reason}
        self.leave_out(reason_of(entry))
        if len(self.entries) < KEPT_ENTRIES:
            self.entries.append(entry)
        if self._sink is not None:
            self._sink.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace").decode() + "\n")

    def leave_out(self, reason: str) -> None:
        """Count a row that is not wanted, which is no fault of its own: no entry, nothing raised."""
        if reason not in self._counts and len(self._counts) >= KEPT_REASONS:
            reason = "other reasons"
        self._counts[reason] += 1

    def catch(self, error: DataError) -> None:
        """Set a row aside for the reason that an error gives."""
        self.add(error.file, error.row, error.field, error.reason)

    def counts(self) -> dict[str, int]:
        """How many rows, by reason; details after a reason's first colon do not split a count."""
        return dict(self._counts.most_common())

    def mark(self) -> Counter[str]:
        """The counts up to now, for `since`."""
        return self._counts.copy()

    def since(self, mark: Counter[str]) -> dict[str, int]:
        """The counts of what came after a mark."""
        return dict((self._counts - mark).most_common())


def reason_of(entry: Mapping[str, Any]) -> str:
    """What an entry is counted under: its field, and its reason up to the first colon."""
    reason = str(entry["reason"]).split(": ")[0]
    return f"{entry['field']}: {reason}" if entry["field"] else reason


def kind_of(row: Mapping[str, Any]) -> Kind:
    """Which canonical kind a canonical row is."""
    if "chosen" in row:
        return "preference"
    if "completions" in row:
        return "ranking"
    if "completion" in row:
        return "unpaired" if "label" in row else "demonstration"
    return "prompt"


def trained_as(row: Row, kinds: Collection[str]) -> Row | None:
    """What a method that trains on `kinds` makes of a row. None: the method leaves the row out, for the reason `LABEL_FALSE`.

    A method for prompts takes the prompt of any row. A method for demonstrations takes a preference's chosen completion, and an unpaired
    completion whose label is true. A row of any other kind comes back as it is.
    """
    kind = kind_of(row)
    if kind in kinds:
        return row
    if "prompt" in kinds:
        return {"prompt": row["prompt"]}
    if "demonstration" not in kinds or kind not in ("preference", "unpaired"):
        return row
    if kind == "unpaired" and not row["label"]:
        return None
    if kind == "unpaired":
        return {key: value for key, value in row.items() if key != "label"}
    best = {"prompt": row["prompt"], "completion": row["chosen"]}
    return best | {"ended": row["chosen_ended"]} if "chosen_ended" in row else best


def completions_of(row: Mapping[str, Any]) -> list[Text]:
    """A canonical row's completions in file order; chosen before rejected."""
    match kind_of(row):
        case "preference":
            return [row["chosen"], row["rejected"]]
        case "ranking":
            return list(row["completions"])
        case "demonstration" | "unpaired":
            return [row["completion"]]
        case _:
            return []


def ended_of(row: Mapping[str, Any]) -> list[bool]:
    """Whether each of `completions_of(row)` came to its end by itself."""
    match kind_of(row):
        case "preference":
            return [row.get("chosen_ended", True), row.get("rejected_ended", True)]
        case "ranking":
            return list(row.get("ended") or [True] * len(row["completions"]))
        case "demonstration" | "unpaired":
            return [row.get("ended", True)]
        case _:
            return []


def with_ended(row: Row, ended: Sequence[bool]) -> Row:
    """The row, with what `ended_of` says of it."""
    match kind_of(row):
        case "preference":
            return row | {"chosen_ended": ended[0], "rejected_ended": ended[1]}
        case "ranking":
            return row | {"ended": list(ended)}
        case _:
            return row | {"ended": ended[0]}


def pair_of(ranking: Row, better: int, worse: int, margin: float | None) -> Row:
    """The preference row of two of a ranking's completions, by their indices."""
    texts = ranking["completions"]
    pair = {"prompt": ranking["prompt"], "chosen": texts[better], "rejected": texts[worse]}
    if margin is not None:
        pair["margin"] = margin
    return with_ended(pair, [ranking["ended"][i] for i in (better, worse)]) if "ended" in ranking else pair


def grades_of(row: Mapping[str, Any]) -> list[float]:
    """Higher is better, one a completion: [1, 0] for a pair, n-1..0 by place for an order, else the scores."""
    kind = kind_of(row)
    if kind == "preference":
        return [1.0, 0.0]
    if kind != "ranking":
        return []
    if "scores" in row:
        return [float(s) for s in row["scores"]]
    order: Sequence[int] = row["ranking"]
    grades = [0.0] * len(order)
    for place, index in enumerate(order):
        grades[index] = float(len(order) - 1 - place)
    return grades


def text_of(value: Text) -> str:
    """One string that identifies a prompt or completion: itself, or its messages' roles and contents."""
    if isinstance(value, str):
        return value
    return "\n".join(f"{m['role']}: {m['content']}{m.get('tool_calls') or ''}" for m in value)


def flat(value: Any) -> str:
    """Any column's value as one text: text, messages, a list of either, or a number."""
    if isinstance(value, list) and not (value and isinstance(value[0], dict)):
        return "\n".join(map(flat, value))
    return text_of(value) if isinstance(value, str | list) else str(value)


def chunks(rows: Iterable[Located], size: int = BLOCK_ROWS) -> Iterator[list[Located]]:
    """Rows in lists of at most `size`, and of few where they are long: a list takes `BLOCK_CHARACTERS` and one row at most."""
    chunk: list[Located] = []
    room = BLOCK_CHARACTERS
    for row in rows:
        chunk.append(row)
        room -= _size(row.data)
        if len(chunk) == size or room <= 0:
            yield chunk
            chunk, room = [], BLOCK_CHARACTERS
    if chunk:
        yield chunk


def _size(value: Any) -> int:
    """Characters of all texts in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 0
