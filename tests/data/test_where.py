"""Which rows a source takes: where, group, max_rows; and what a file's columns are taken for."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.errors import DataError
from tests.data.support import lines, load_one, read_all, real

ROWS = [{"prompt": f"p{i}", "qid": i, "lang": "ko" if i % 2 else "en", "extra": None} for i in range(10)]


@pytest.fixture(params=["jsonl", "csv", "parquet"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    path = tmp_path / f"r.{request.param}"
    if request.param == "jsonl":
        return lines(path, ROWS)
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text("prompt,qid,lang,extra\n" + "".join(f"{r['prompt']},{r['qid']},{r['lang']},\n" for r in ROWS))
    return str(path)


def test_where_takes_the_rows_of_some_values(path: str, tmp_path: Path) -> None:
    rows, quarantine = read_all(path, where={"lang": ["ko"]})
    assert [int(r.data["qid"]) for r in rows] == [1, 3, 5, 7, 9]
    assert quarantine.counts() == {"where: lang": 5} and quarantine.rows_in == 10 and quarantine.entries == []
    (tmp_path / "ids.txt").write_text("\ufeff3\n\n 4 \n77\n")
    rows, quarantine = read_all(path, where={"qid": str(tmp_path / "ids.txt")})
    assert [r.data["prompt"] for r in rows] == ["p3", "p4"]
    rows, quarantine = read_all(path, where={"qid": [3, 4], "lang": ["ko"]})
    assert [r.data["prompt"] for r in rows] == ["p3"]
    assert quarantine.counts() == {"where: qid": 8, "where: lang": 1}


def test_where_stands_in_the_report(path: str) -> None:
    loaded = load_one(path, where={"lang": ["ko"]}, max_rows=2)
    (report,) = loaded.sources
    assert [r.data["prompt"] for r in loaded.rows] == ["p1", "p3"], "max_rows counts what where takes"
    assert report["rows_in"] == report["rows_out"] + sum(report["dropped"].values())
    assert report["dropped"]["where: lang"] >= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": {"langs": ["ko"]}}, "where: no such column: langs; found prompt, qid, lang, extra"),
        ({"group": "quid"}, "group: quid: no such column; found prompt, qid, lang, extra"),
        ({"where": {"qid": "none.txt"}}, r"where: qid: none\.txt cannot be read as a text file of one value a line"),
    ],
)
def test_a_column_or_file_that_is_not_there(path: str, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_all(path, **options)


def test_a_column_that_comes_late_is_missed_early(tmp_path: Path) -> None:
    many = [{"prompt": "p"}] * 100 + [{"prompt": "p", "qid": 1}]
    with pytest.raises(DataError, match="no such column"):
        read_all(lines(tmp_path / "r.jsonl", many), where={"qid": [1]})
    rows, quarantine = read_all(lines(tmp_path / "r.jsonl", many[2:]), where={"qid": [1]})
    assert len(rows) == 1 and quarantine.counts() == {"where: qid": 98}


def test_a_group_is_the_column_as_text(path: str) -> None:
    assert [r.group for r in read_all(path, group="qid")[0]] == [str(i) for i in range(10)]
    rows, _ = read_all(path)
    assert {r.group for r in rows} == {None}


def test_a_row_without_its_group_is_set_aside(tmp_path: Path) -> None:
    rows, quarantine = read_all(lines(tmp_path / "r.jsonl", [{"prompt": "p", "g": 1}, {"prompt": "p"}]), group="g")
    assert len(rows) == 1
    assert [(e["row"], e["field"], e["reason"]) for e in quarantine.entries] == [
        (2, "g", "is missing, and rows are grouped by it")
    ]


def test_pairs_of_one_question_are_a_group_in_any_format() -> None:
    path = real("stackexchange/beer_pairs.jsonl.gz")
    as_pairs = load_one(path)
    assert all(r.group and r.group.isdecimal() for r in as_pairs.rows) and len({r.group for r in as_pairs.rows}) == 388
    columns = {"prompt": "question", "completion": "response_j"}
    as_demonstrations = load_one(path, format="demonstration", columns=columns)
    assert [r.group for r in as_demonstrations.rows] == [r.group for r in as_pairs.rows]


@pytest.mark.parametrize("options", [{}, {"format": "demonstration", "columns": {"prompt": "question", "completion": "response_j"}}, {"format": "prompt", "columns": {"prompt": "question"}}])  # fmt: skip
def test_a_table_groups_as_its_lines_do(tmp_path: Path, options: dict) -> None:
    rows = [{"question": f"q{i // 2}", "response_j": f"a{i}", "response_k": f"b{i}", "qid": i // 2} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    table, text = load_one(tmp_path / "r.parquet", **options), load_one(lines(tmp_path / "r.jsonl", rows), **options)
    assert [(r.data, r.group) for r in table.rows] == [(r.data, r.group) for r in text.rows]
    assert [r.group for r in table.rows] == ["0", "0", "1", "1", "2", "2"]


def formats(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> str:
    return load_one(lines(tmp_path / "r.jsonl", rows), **options).sources[0]["format"]


def test_one_bad_row_does_not_decide_the_format(tmp_path: Path) -> None:
    """The first row alone looks like a prompt; read so, the answers of all the others would be thrown away in silence."""
    assert formats(tmp_path, {"prompt": "p"}, {"prompt": "p", "completion": "c"}) == "demonstration"
    assert (
        formats(tmp_path, {"prompt": "p", "chosen": None}, {"prompt": "p", "chosen": "a", "rejected": "b"})
        == "preference"
    )


@pytest.mark.parametrize(
    ("data", "readings"),
    [
        ({"prompt": "p", "completion": "c", "chosen": "a", "rejected": "b"}, {"preference", "demonstration"}),
        ({"prompt": "p", "completion": "c", "messages": [{"role": "user"}]}, {"messages", "demonstration"}),
        ({"prompt": "p", "completion": "c", "label": 1}, {"unpaired", "demonstration"}),
        ({"conversations": [{"from": "human"}], "messages": [{"role": "user"}]}, {"sharegpt", "messages"}),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1, 2], "completion": "c"}, {"scored", "demonstration"}),
    ],
)
def test_two_readings_are_an_error_that_names_them(tmp_path: Path, data: dict, readings: set[str]) -> None:
    with pytest.raises(DataError, match="can be read in 2 ways; say format: ") as error:
        formats(tmp_path, data)
    said = str(error.value).partition("; say ")[2].split(" or ")
    assert {s.removeprefix("format: ") for s in said} == readings


def test_zephyr_pairs_have_their_prompt_twice(tmp_path: Path) -> None:
    """ultrafeedback_binarized: the prompt as text, and whole dialogues that start with it."""
    user, good, bad = (
        {"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Yes"), ("assistant", "No"))
    )
    data = {
        "prompt": "Hi",
        "chosen": [user, good],
        "rejected": [user, bad],
        "messages": [user, good],
        "score_chosen": 8.0,
    }
    with pytest.raises(DataError, match="can be read in 2 ways"):
        formats(tmp_path, data)
    loaded = load_one(lines(tmp_path / "r.jsonl", [data, data | {"prompt": "other"}]), format="preference")
    assert [r.data for r in loaded.rows] == [{"prompt": [user], "chosen": [good], "rejected": [bad]}]
    assert loaded.dropped == {"prompt: is none of the messages that chosen starts with": 1}


def test_dates_and_other_values_of_a_table_are_compared_as_they_are_written(tmp_path: Path) -> None:
    day = datetime(2026, 11, 22, 8, 30)
    table = pa.table(
        {"prompt": ["a", "b"], "completion": ["x", "y"], "day": [day, day + timedelta(1)], "ok": [True, False]}
    )
    pq.write_table(table, path := tmp_path / "t.parquet")
    for where in ({"day": ["2026-11-22 08:30:00"]}, {"ok": ["true"]}):
        rows, _ = read_all(path, where=where)
        assert [row.data["prompt"] for row in rows] == ["a"]
    rows, _ = read_all(path, group="day")
    assert [row.group for row in rows] == ["2026-11-22 08:30:00", "2026-11-23 08:30:00"]
