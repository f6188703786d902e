"""Tables of all kinds: columns that Python has no value for, names that stand twice, decimals, and rows of any length."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.data import build_folder as output
from rlhf.data import rows
from rlhf.data.readers import arrow_files as tablefiles
from rlhf.data.readers.arrow_files import table_batches
from rlhf.data.rows import Located, chunks
from rlhf.errors import DataError
from rlhf.tokens.cache import _file
from tests.data.support import load_one, read_all
from tests.data.test_build import make, read

FAR = {
    "the year 148108": pa.array([2**62, 0], pa.timestamp("us")),
    "nanoseconds": pa.array([1_700_000_000_000_000_123, 0], pa.timestamp("ns")),
    "an unknown zone": pa.array([0, 1], pa.timestamp("us", tz="Mars/Olympus")),
    "the year 5879610": pa.array([2**31 - 1, 0], pa.date32()),
    "a day": pa.array([86_400_000, 0], pa.date64()),
    "a time": pa.array([123, 0], pa.time64("ns")),
}


def table(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", FAR)
def test_a_time_that_python_does_not_know_costs_no_row(tmp_path: Path, name: str) -> None:
    path = table(tmp_path / "t.parquet", prompt=["a", "b"], completion=["c", "d"], label=[True, False], t=FAR[name])
    loaded = load_one(path)
    assert [r.data["prompt"] for r in loaded.rows] == ["a", "b"]
    assert loaded.quarantine.entries == []


def test_a_time_inside_a_list_costs_its_row_and_says_why(tmp_path: Path) -> None:
    times = pa.array([[2**62], [0]], pa.list_(pa.timestamp("us")))
    found, quarantine = read_all(table(tmp_path / "t.parquet", prompt=["a", "b"], t=times))
    assert [r.data["prompt"] for r in found] == ["b"]
    (entry,) = quarantine.entries
    assert entry["row"] == 1 and entry["reason"].startswith("holds a value that Python cannot hold: ")


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, kind: str) -> None:
    twice = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["prompt", "completion", "completion"]
    )
    path = tmp_path / ("t.parquet" if kind == "parquet" else "t.arrow")
    if kind == "parquet":
        pq.write_table(twice, path)
    else:
        make_writer = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, make_writer(sink, twice.schema) as writer:
            writer.write_table(twice)
    for use in (load_one, read_all):
        with pytest.raises(DataError, match=r"t\.(parquet|arrow): completion: two columns have this name"):
            use(path)


def test_decimals_are_numbers(tmp_path: Path) -> None:
    scores = pa.array([[Decimal("1.50"), Decimal("2.25")]])
    (row,) = load_one(table(tmp_path / "t.parquet", prompt=["a"], completions=[["x", "y"]], scores=scores)).rows
    assert row.data["scores"] == [1.5, 2.25]


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.tsv", "r.xml", "r.jsonl.gz", "r.arrow"])
def test_a_file_that_cannot_be_read_is_a_data_error(tmp_path: Path, name: str) -> None:
    """Reading one's own memory from its start is an input/output error, for root as well."""
    memory = Path("/proc/self/mem")
    if not memory.exists():
        pytest.skip("needs /proc")
    (tmp_path / name).symlink_to(memory)
    for use in (load_one, read_all):
        with pytest.raises(DataError, match=rf"{name}: cannot be read: Input/output error"):
            use(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: cannot be read: Input/output error"):
        _file(tmp_path / name)


@pytest.mark.parametrize("group", ["prompt", "chosen"])
def test_a_group_may_be_a_column_that_is_read_anyway(tmp_path: Path, group: str) -> None:
    columns = pa.table({"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]})
    path = tmp_path / "t.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, columns.schema) as writer:
        writer.write_table(columns)
    assert [r.group for r in load_one(path, group=group).rows] == columns.column(group).to_pylist()


def test_long_rows_are_handled_few_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK_CHARACTERS", 1000)
    monkeypatch.setattr(output, "GROUP_BYTES", 1000)
    monkeypatch.setattr(tablefiles, "BATCH_BYTES", 1000)
    long = [
        Located("f", i, {"prompt": [{"role": "user", "content": "x" * 400}], "completions": ["y" * 99] * 2})
        for i in range(7)
    ]
    assert [len(chunk) for chunk in chunks(long)] == [2, 2, 2, 1]
    assert [len(chunk) for chunk in chunks([Located("f", 1, {"prompt": "x"})] * 7, 5)] == [5, 2]

    # texts that parquet cannot write as one and the same page, or the sizes say nothing
    texts = [f"{i}" + "".join(chr(97 + (i * j * j) % 26) for j in range(400)) for i in range(9)]
    source = table(tmp_path / "t.parquet", prompt=texts, completion=texts)
    assert max(batch.num_rows for batch in table_batches(source)) <= 2
    make(tmp_path / "out", [source])
    assert [row["prompt"] for row in read(tmp_path / "out")] == texts
    assert pq.ParquetFile(tmp_path / "out/train/00000.parquet").num_row_groups >= 4
