"""Fifty kinds of bad row, 250 of each, among good ones: every bad row is set aside with its file, row, field and reason, every good one comes through as it was."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.load import Stream
from rlhf.data.readers.text_files import flaw
from rlhf.data.rows import KEPT_ENTRIES, Located, Quarantine
from rlhf.errors import DataError
from rlhf.recipe.sections import SourceSection

EACH = 250
Bad = tuple[bytes, str | None, str]  # the line, and the field and the start of the reason for which it has to go


def dumps(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def pair(i: int, **changes: Any) -> dict[str, Any]:
    row = {"prompt": f"질문 {i}?", "chosen": f"good {i}", "rejected": f"bad {i}", "margin": 1 + i % 3} | changes
    return {k: v for k, v in row.items() if v is not ...}


def pool(i: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"p{i}", "completions": [f"a{i}", f"b{i}", f"c{i}"], "ranking": [2, 0, 1]} | changes


def told(i: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"p{i}", "completion": f"c{i}", "label": i % 2 == 0} | changes


def with_bytes(i: int, text: str, encoding: str) -> bytes:
    return b'{"prompt": "p%d", "chosen": "' % i + text.encode(encoding) + b'", "rejected": "b"}'


SURROGATES = "not valid Unicode"
PAIRS: dict[str, Callable[[int], Bad]] = {
    "cut short": lambda i: (dumps(pair(i))[:-1], None, "not JSON"),
    "a trailing comma": lambda i: (dumps(pair(i))[:-1] + b",}", None, "not JSON"),
    "Python's repr": lambda i: (repr(pair(i)).encode(), None, "not JSON"),
    "two objects on one line": lambda i: (dumps(pair(i)) * 2, None, "not JSON: Extra data"),
    "a byte order mark in mid-file": lambda i: (b"\xef\xbb\xbf" + dumps(pair(i)), None, "not JSON"),
    "a raw NUL": lambda i: (dumps(pair(i)).replace(b"good", b"go\0od"), None, "not JSON: Invalid control character"),
    "an escaped NUL": lambda i: (json.dumps(pair(i, chosen="a\0")).encode(), "chosen", "holds a NUL character"),
    "half a surrogate pair": lambda i: (json.dumps(pair(i, rejected=f"{i}\ud83d")).encode(), "rejected", SURROGATES),
    "a surrogate in a name": lambda i: (json.dumps(pair(i) | {"\udc00": 1}).encode(), "'\\udc00'", SURROGATES),
    "a surrogate in a name, and nested deeply": lambda i: (
        b'{"\\ud800": ' + b"[" * 900 + b"]" * 900 + b"}",
        "'\\ud800'",
        SURROGATES,
    ),
    "Latin-1": lambda i: (with_bytes(i, "café", "latin-1"), "chosen", SURROGATES),
    "cp949": lambda i: (with_bytes(i, "안녕하세요", "cp949"), "chosen", SURROGATES),
    "a field twice": lambda i: (dumps(pair(i))[:-1] + b', "prompt": "x"}', None, "duplicate key: 'prompt'"),
    "a field twice, deep down": lambda i: (
        dumps(pair(i))[:-1] + b', "m": [{"a": 1, "a": 1}]}',
        None,
        "duplicate key: 'a'",
    ),
    "no prompt": lambda i: (dumps(pair(i, prompt=...)), "prompt", "is missing"),
    "no chosen": lambda i: (dumps(pair(i, chosen=...)), "chosen", "is missing"),
    "no rejected": lambda i: (dumps(pair(i, rejected=...)), "rejected", "is missing"),
    "a null prompt": lambda i: (dumps(pair(i, prompt=None)), "prompt", "is null"),
    "a null side": lambda i: (dumps(pair(i, rejected=None)), "rejected", "is null"),
    "a number for text": lambda i: (dumps(pair(i, prompt=i)), "prompt", "must be text, not int"),
    "a boolean for text": lambda i: (dumps(pair(i, chosen=True)), "chosen", "must be text as the prompt is, not bool"),
    "a list for text": lambda i: (
        dumps(pair(i, rejected=["x"])),
        "rejected",
        "must be text as the prompt is, not list",
    ),
    "an object for text": lambda i: (dumps(pair(i, prompt={"text": "x"})), "prompt", "must be text, not dict"),
    "an empty prompt": lambda i: (dumps(pair(i, prompt="")), "prompt", "is empty"),
    "spaces only": lambda i: (dumps(pair(i, chosen=" \n\t\u3000" * (1 + i % 3))), "chosen", "is empty"),
    "equal sides": lambda i: (dumps(pair(i, rejected=f"good {i}")), "rejected", "is equal to chosen"),
    "NaN": lambda i: (json.dumps(pair(i, margin=float("nan"))).encode(), None, "NaN and Infinity are not numbers"),
    "Infinity": lambda i: (
        json.dumps(pair(i, margin=float("-inf"))).encode(),
        None,
        "NaN and Infinity are not numbers",
    ),
    "a number that runs over": lambda i: (
        dumps(pair(i, margin=7)).replace(b" 7}", b" 1e999}"),
        "margin",
        "NaN and Infinity",
    ),
    "a margin below zero": lambda i: (dumps(pair(i, margin=-1 - i)), "margin", "is negative"),
    "a margin in words": lambda i: (dumps(pair(i, margin="big")), "margin", "must be a finite number: 'big'"),
    "a boolean for a number": lambda i: (dumps(pair(i, margin=True)), "margin", "must be a finite number: True"),
    "an array for a row": lambda i: (dumps([pair(i)]), None, "not an object: list"),
    "text for a row": lambda i: (dumps("text"), None, "not an object: str"),
    "null for a row": lambda i: (b"null", None, "not an object: NoneType"),
    "nested without end": lambda i: (b'{"prompt": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", None, "not JSON"),
    "an endless number": lambda i: (
        dumps(pair(i, margin=7)).replace(b" 7}", b" " + b"9" * 5000 + b"}"),
        None,
        "not JSON",
    ),
}
POOLS: dict[str, Callable[[int], Bad]] = {
    "an index twice": lambda i: (dumps(pool(i, ranking=[0, 0, 1])), "ranking", "is not an order"),
    "an index out of range": lambda i: (dumps(pool(i, ranking=[1, 2, 3])), "ranking", "is not an order"),
    "an order too short": lambda i: (dumps(pool(i, ranking=[1, 0])), "ranking", "is not an order"),
    "an order of floats": lambda i: (dumps(pool(i, ranking=[0.0, 1.0, 2.0])), "ranking", "is not an order"),
    "an order in text": lambda i: (dumps(pool(i, ranking="abc")), "ranking", "must be a list, not str"),
    "a circle": lambda i: (dumps(pool(i, ranking=None, comparisons=[[0, 1], [1, 2], [2, 0]])), "comparisons", "go round in a circle: 0 > 1 > 2 > 0"),
    "comparisons that leave a doubt": lambda i: (dumps(pool(i, ranking=None, comparisons=[[0, 1]])), "comparisons", "do not say which"),
    "a score too few": lambda i: (dumps(pool(i, ranking=None, scores=[1, 2])), "scores", "needs one score a completion: 2 for 3"),
    "a null score": lambda i: (dumps(pool(i, ranking=None, scores=[1, None, 2])), "scores", "must be a finite number: None"),
    "a boolean score": lambda i: (dumps(pool(i, ranking=None, scores=[1, 2, True])), "scores", "must be a finite number: True"),
    "scores against the order": lambda i: (dumps(pool(i, scores=[3, 2, 1])), "ranking", "contradicts scores"),
    "one completion": lambda i: (dumps(pool(i, completions=["a"], ranking=[0])), "completions", "needs two completions at least"),
    "an empty completion": lambda i: (dumps(pool(i, completions=["a", "", "c"])), "completions", "is empty"),
    "completions in text": lambda i: (dumps(pool(i, completions="a, b")), "completions", "must be a list, not str"),
}  # fmt: skip
LABELS: dict[str, Callable[[int], Bad]] = {
    "a label in doubt": lambda i: (
        dumps(told(i, label="maybe")),
        "label",
        "must be true or false (or 1 or 0): 'maybe'",
    ),
    "no label": lambda i: (dumps(told(i, label=None)), "label", "is null"),
    "a label of many": lambda i: (dumps(told(i, label=2)), "label", "must be true or false (or 1 or 0): 2"),
}
CSV: dict[str, Callable[[int], Bad]] = {
    "a cell too few": lambda i: (b"p%d,c" % i, None, "wrong number of cells: 2 on line"),
    "a cell too many": lambda i: (b"p%d,a,b,c" % i, None, "wrong number of cells: 4 on line"),
    "an unclosed quote": lambda i: (b'p%d,"a,b' % i, None, "not CSV: a quote on line"),
    "a quote that closes inside": lambda i: (b'p%d,"a"x,b' % i, None, "not CSV: a quote on line"),
    "an empty cell": lambda i: (b"p%d,,b" % i, "chosen", "is empty"),
}
LONG = "long " * 40_000
GOOD: dict[str, Callable[[int], dict[str, Any]]] = {
    "pairs": lambda i: pair(i, chosen=LONG) if i == 3 else pair(i, chosen=f"<|im_end|></s> {i} <|endoftext|>") if i % 7 == 0 else pair(i),
    "pools": pool,
    "labels": told,
}  # fmt: skip
FILES = {"pairs": PAIRS, "pools": POOLS, "labels": LABELS}


def mixed(kinds: dict[str, Callable[[int], Bad]], good: Callable[[int], bytes]) -> Iterator[tuple[bytes, Bad | None]]:
    """The lines of a file in a seeded order: `EACH` of every kind, and as many good ones in all, one of them first."""
    rng = random.Random(7)
    places = [kind for kind in kinds for _ in range(EACH)]
    places += [""] * len(places)
    rng.shuffle(places)
    for i, kind in enumerate(["", *places]):
        if kind:
            bad = kinds[kind](i)
            yield bad[0], bad
        else:
            yield good(i), None


def load_all(path: Path, **options: Any) -> tuple[list[Located], Stream, list[dict[str, Any]]]:
    sink = io.StringIO()
    stream = Stream([SourceSection(path=str(path), **options)], quarantine=Quarantine(sink=sink))
    rows = list(stream)
    return rows, stream, [json.loads(line) for line in sink.getvalue().splitlines()]


def check(
    path: Path, expected: list[Bad | None], first: int, entries: list[dict[str, Any]], stream: Stream, rows_out: int
) -> None:
    """One entry a bad row, in its place and with its reason; counts that add up, exact beyond what is kept in memory."""
    wanted = {number: bad for number, bad in enumerate(expected, first) if bad}
    assert [e["file"] for e in entries] == [str(path)] * len(entries)
    assert sorted(e["row"] for e in entries) == sorted(wanted)
    for entry in entries:
        _, field, reason = wanted[entry["row"]]
        assert entry["field"] == field and entry["reason"].startswith(reason), (entry, field, reason)
        assert len(entry["reason"]) <= 500
    (report,) = stream.sources
    assert report["rows_in"] == stream.quarantine.rows_in == len(expected) == rows_out + len(wanted)
    assert sum(report["dropped"].values()) == len(wanted)
    assert stream.quarantine.entries == entries[:KEPT_ENTRIES]


def test_there_are_forty_kinds_and_more() -> None:
    assert sum(map(len, (*FILES.values(), CSV))) >= 40


@pytest.mark.parametrize("name", FILES)
def test_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.jsonl"
    both = list(mixed(FILES[name], lambda i: dumps(GOOD[name](i))))
    path.write_bytes(b"\n".join(line for line, _ in both))
    rows, stream, entries = load_all(path)
    good = {number: json.loads(line) for number, (line, bad) in enumerate(both, 1) if bad is None}
    assert {r.row: r.data for r in rows} == good
    check(path, [bad for _, bad in both], 1, entries, stream, len(good))


def test_cells(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    both = list(mixed(CSV, lambda i: f'p{i},"a ""{i}""\nx",b'.encode()))
    path.write_bytes(b"prompt,chosen,rejected\n" + b"\n".join(line for line, _ in both) + b"\n")
    rows, stream, entries = load_all(path)
    good = [number for number, (_, bad) in enumerate(both, 1) if bad is None]
    assert [r.row for r in rows] == good
    assert all(
        r.data == {"prompt": f"p{n - 1}", "chosen": f'a "{n - 1}"\nx', "rejected": "b"}
        for r, n in zip(rows, good, strict=True)
    )
    check(path, [bad for _, bad in both], 1, entries, stream, len(good))


# An array whose element is no JSON at all is broken as a whole, and says so with line and column: these cannot be mended row by row.
NO_JSON = {name for name, make in PAIRS.items() if make(0)[2].startswith("not JSON")} - {"an endless number"}


def test_elements_of_an_array(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    kinds = {name: make for name, make in PAIRS.items() if name not in NO_JSON}
    both = list(mixed(kinds, lambda i: dumps(GOOD["pairs"](i))))
    path.write_bytes(b"[\n " + b",\n ".join(line for line, _ in both) + b"\n]\n")
    rows, stream, entries = load_all(path)
    assert {r.row: r.data for r in rows} == {
        n: json.loads(line) for n, (line, bad) in enumerate(both, 1) if bad is None
    }
    check(path, [bad for _, bad in both], 1, entries, stream, len(rows))


@pytest.mark.parametrize("name", sorted(NO_JSON))
def test_an_array_that_breaks_names_the_place(tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.json").write_bytes(b"[" + dumps(pair(1)) + b",\n" + PAIRS[name](2)[0] + b"]")
    with pytest.raises(DataError) as error:
        load_all(tmp_path / "rows.json")
    assert error.value.row == 2


def test_a_gzip_stream_that_breaks_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    both = list(mixed(PAIRS, lambda i: dumps(GOOD["pairs"](i))))
    whole = gzip.compress(b"\n".join(line for line, _ in both))
    path.write_bytes(whole[: len(whole) * 2 // 3])
    rows, stream, entries = load_all(path)
    last = max(entries, key=lambda e: e["row"])
    assert "the gzip stream ends too early here" in last["reason"] and last["row"] > 1000
    before = both[: last["row"] - 1]
    assert {r.row: r.data for r in rows} == {
        n: json.loads(line) for n, (line, bad) in enumerate(before, 1) if bad is None
    }
    check(path, [*(bad for _, bad in before), (b"", None, "the gzip stream")], 1, entries, stream, len(rows))


@pytest.mark.parametrize("name", FILES)
def test_strict_stops_at_the_first_bad_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.jsonl"
    both = list(mixed(FILES[name], lambda i: dumps(GOOD[name](i))))
    path.write_bytes(b"\n".join(line for line, _ in both))
    stream = Stream([SourceSection(path=str(path))], quarantine=Quarantine(strict=True))
    with pytest.raises(DataError) as error:
        list(stream)
    assert error.value.file == str(path)
    assert both[(error.value.row or 0) - 1][1] is not None
    assert error.value.reason.startswith(both[(error.value.row or 0) - 1][1][2])  # type: ignore[index]


def test_a_hostile_file_does_not_fill_the_memory_with_reasons(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(b'{"prompt": "p", "k%d": "\\u0000"}' % i for i in range(5000)))
    quarantine = Quarantine()
    stream = Stream([SourceSection(path=str(path), format="prompt")], quarantine=quarantine, needs_rows=False)
    assert list(stream) == []
    assert len(quarantine.counts()) <= 1001 and sum(quarantine.counts().values()) == 5000
    assert quarantine.counts()["other reasons"] == 4000 and len(quarantine.entries) == KEPT_ENTRIES


def test_a_row_deeper_than_the_stack() -> None:
    """What the parser lets through may still be too deep to look into."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert flaw({"prompt": "p", "x": deep}) == ("x", "is nested too deeply")
    assert flaw({"\udfff": deep})[1] == "not valid Unicode in a name, or a NUL"
