"""Reading files: every format, every way a real file is broken, and the balance rows_in = rows_out + quarantined."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.rows import Quarantine
from rlhf.data.sources import read_file
from rlhf.errors import DataError
from tests.data.support import lines, load_one, read_all

ROWS = [{"prompt": "하나", "n": 1}, {"prompt": "two\nlines", "n": 2}]


def data_of(path: Path | str, **options: object) -> list[dict]:
    rows, quarantine = read_all(path, **options)
    assert quarantine.entries == []
    assert quarantine.rows_in == len(rows)
    return [r.data for r in rows]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("form", ["array", "pretty", "lines", "crlf"])
def test_json_is_read_by_its_text_not_its_name(tmp_path: Path, zipped: bool, bom: bytes, name: str, form: str) -> None:
    text = {
        "array": json.dumps(ROWS),
        "pretty": "\n" + json.dumps(ROWS, indent=1),
        "lines": "\n".join(map(json.dumps, ROWS)),
        "crlf": "\r\n".join(map(json.dumps, ROWS)) + "\r\n\r\n",
    }[form]
    path = tmp_path / (name + ".gz" * zipped)
    path.write_bytes(gzip.compress(bom + text.encode()) if zipped else bom + text.encode())
    assert data_of(path) == ROWS


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".parquet.gz", ".arrow.gz"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    path, table = tmp_path / "t", pa.Table.from_pylist(ROWS)
    if "parquet" in suffix:
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, table.schema) as writer:
            writer.write_table(table)
    data = path.read_bytes()
    named = tmp_path / f"t{suffix}"
    named.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert data_of(named) == ROWS


def test_arrow_file_format(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_table(table)
    assert data_of(tmp_path / "t.arrow") == ROWS


def test_a_broken_table_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"t\.parquet: not a whole parquet file"):
        read_all(tmp_path / "t.parquet")


def test_a_path_that_the_system_refuses_to_look_at(tmp_path: Path) -> None:
    for options in ({}, {"split": "train"}):
        with pytest.raises(DataError, match="x: no such f"):
            load_one("x" * 300, **options)


BAD_LINES = {
    '{"a": 1': "not JSON",
    "[1, 2]": "not an object",
    "null": "not an object",
    '{"a": "x", "a": "y"}': "duplicate key: 'a'",
    '{"a": {"b": 1, "b": 2}}': "duplicate key: 'b'",
    '{"a": NaN}': "NaN and Infinity",
    '{"a": [-Infinity]}': "NaN and Infinity",
    '{"a": 1e999}': "NaN and Infinity",
    r'{"a": "\ud800"}': "not valid Unicode",
    r'{"a": ["x\u0000"]}': "NUL",
    '{"a": ' + "9" * 5000 + "}": "not JSON",
    "[" * 100_000: "not JSON",
}


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_a_bad_line_costs_itself_only(tmp_path: Path, bad: str, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n\n{bad}\n{{"a": 2}}\n')
    rows, quarantine = read_all(path)
    assert [(r.row, r.data["a"]) for r in rows] == [(1, 1), (4, 2)]
    (entry,) = quarantine.entries
    assert (entry["file"], entry["row"]) == (str(path), 3)
    assert reason in entry["reason"]
    assert quarantine.rows_in == 3


@pytest.mark.parametrize("bad", ['{"a": 1, "a": 2}', '{"a": NaN}', "7", r'{"a": "\udfff"}', '{"a": 1e999}'])
def test_a_bad_row_of_an_array_costs_itself_only(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(f'[{{"a": 1}},\n {bad} , {{"a": 2}}]')
    rows, quarantine = read_all(path)
    assert [(r.row, r.data["a"]) for r in rows] == [(1, 1), (3, 2)]
    assert [e["row"] for e in quarantine.entries] == [2]
    assert quarantine.rows_in == 3


def test_bytes_that_are_not_utf8_cost_their_row(tmp_path: Path) -> None:
    for name, text in {"r.jsonl": b'{"a": "\xff"}\n{"a": "ok"}', "r.json": b'[{"a": "\xff"}, {"a": "ok"}]'}.items():
        (tmp_path / name).write_bytes(text)
        rows, quarantine = read_all(tmp_path / name)
        assert [r.data["a"] for r in rows] == ["ok"]
        assert [(e["row"], e["field"]) for e in quarantine.entries] == [(1, "a")]


def test_utf16_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"a": 1}', encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16"):
        read_all(tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"a": 1},\n {"a": }]', "line 2, column 8"),
        ('[{"a": 1}\n {"a": 2}]', "line 2, column 2"),
        ('[{"a": 1},]', "line 1, column 11"),
        ("[\n", "line 2, column 1"),
        ('[{"a": 1}]\n x', "line 2, column 2"),
    ],
)
def test_a_broken_array_names_line_and_column(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=place):
        read_all(tmp_path / "r.json")


def test_one_pretty_object_is_no_rows(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"version": 1, "data": [{"a": 1}]}, indent=2))
    with pytest.raises(DataError, match="version, data"):
        read_all(tmp_path / "r.json")


def test_lines_whose_first_is_a_list(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('[1]\n{"a": 1}\n')
    rows, quarantine = read_all(tmp_path / "r.jsonl")
    assert [r.row for r in rows] == [2]
    assert len(quarantine.entries) == 1


@pytest.mark.parametrize("form", ["lines", "array", "csv"])
def test_a_truncated_gzip_gives_what_came_before_and_one_entry(tmp_path: Path, form: str) -> None:
    many = [{"a": i, "text": f"{i * 7919 % 10007} {i * 31 % 977} {i}"} for i in range(5000)]
    text = {
        "lines": "\n".join(map(json.dumps, many)),
        "array": json.dumps(many),
        "csv": "a,text\n" + "\n".join(f"{r['a']},{r['text']}" for r in many),
    }[form]
    whole = gzip.compress(text.encode())
    path = tmp_path / ("r.csv.gz" if form == "csv" else "r.json.gz")
    path.write_bytes(whole[: len(whole) // 2])
    rows, quarantine = read_all(path)
    assert 1000 < len(rows) < 4000
    assert [int(r.data["a"]) for r in rows] == list(range(len(rows)))
    (entry,) = quarantine.entries
    assert entry["row"] == len(rows) + 1
    assert "gzip stream ends too early" in entry["reason"]
    assert quarantine.rows_in == len(rows) + 1


def test_csv_cells_and_ragged_rows(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text('Q,A\n"a, ""b""\nc",d\ne\n"open,x\nf,g\n"h"i,j\nk,l,m\nn,o\n', newline="")
    rows, quarantine = read_all(path)
    assert [r.data for r in rows] == [{"Q": 'a, "b"\nc', "A": "d"}, {"Q": "f", "A": "g"}, {"Q": "n", "A": "o"}]
    assert [e["reason"].split(":")[0] for e in quarantine.entries] == [
        "wrong number of cells",
        "not CSV",
        "not CSV",
        "wrong number of cells",
    ]
    assert quarantine.rows_in == 7


def test_a_cell_of_many_lines_is_one_cell(tmp_path: Path) -> None:
    code = "x = 1\n" * 5000
    (tmp_path / "r.csv").write_text(f'prompt,completion\na,"{code}"\nb,c\n')
    assert data_of(tmp_path / "r.csv") == [{"prompt": "a", "completion": code}, {"prompt": "b", "completion": "c"}]


def test_tsv_with_and_without_quoting(tmp_path: Path) -> None:
    with (tmp_path / "q.tsv").open("w", newline="") as f:
        csv.writer(f, delimiter="\t").writerows([["a", "b"], ['say "x"', "two\nlines"]])
    assert data_of(tmp_path / "q.tsv") == [{"a": 'say "x"', "b": "two\nlines"}]
    (tmp_path / "p.tsv").write_text('a\tb\n"x" y\tz\n"open\tw\n')
    assert data_of(tmp_path / "p.tsv") == [{"a": '"x" y', "b": "z"}, {"a": '"open', "b": "w"}]


def test_a_header_with_one_name_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="header"):
        read_all(tmp_path / "r.csv")


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train/x.parquet", None),
        ("test/x.parquet", "test"),
        ("train-00000-of-00001.parquet", None),
        ("data/test-00000-of-00001.parquet", "test"),
        ("x.parquet", None),
    ],
)
def test_folders(tmp_path: Path, file: str, split: str | None) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / file)
    assert data_of(tmp_path, split=split) == ROWS
    with pytest.raises(DataError, match="no split 'dev'"):
        read_all(tmp_path, split="dev")


def test_saved_by_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "d"))
    assert data_of(tmp_path / "d") == ROWS


def test_globs_are_sorted_and_missing_files_are_errors(tmp_path: Path) -> None:
    lines(tmp_path / "b.jsonl", [{"a": 2}])
    lines(tmp_path / "a.jsonl", [{"a": 1}])
    assert [d["a"] for d in data_of(tmp_path / "*.jsonl")] == [1, 2]
    for path, split in (("no*.jsonl", None), ("none.jsonl", None), ("a.jsonl", "train")):
        with pytest.raises(DataError):
            read_all(tmp_path / path, split=split)
    (tmp_path / "x.docx").write_text("")
    with pytest.raises(DataError, match="cannot tell"):
        read_all(tmp_path / "x.docx")


def test_max_rows_looks_no_further(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"a": 1}\nbad\n{"a": 2}\n{"a": 3}\nbad\n')
    rows, quarantine = read_all(tmp_path / "r.jsonl", max_rows=2)
    assert [r.data["a"] for r in rows] == [1, 2]
    assert quarantine.rows_in == 3


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), _json), max_size=8), st.booleans())
def test_balance_of_any_file(tmp_path_factory: pytest.TempPathFactory, rows: list, array: bool) -> None:
    """Whatever the rows hold: as many in as out and set aside, and what comes out can be written as UTF-8."""
    path = tmp_path_factory.mktemp("p") / "r.jsonl"
    rows = [(True, 0), *rows]  # a first line that is a list would be read as an array
    texts = [json.dumps({"v": value} if is_row else value) for is_row, value in rows]
    path.write_text(f"[{','.join(texts)}]" if array else "".join(t + "\n" for t in texts))
    quarantine = Quarantine()
    found = list(read_file(path, quarantine))
    assert quarantine.rows_in == len(rows) == len(found) + len(quarantine.entries)
    for located in found:
        assert located.data == json.loads(texts[located.row - 1])
        json.dumps(located.data, ensure_ascii=False, allow_nan=False).encode()
