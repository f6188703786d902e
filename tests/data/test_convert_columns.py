"""The columns' way and the rows' way give the same rows, the same quarantine, the same places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data import convert_columns as columnar
from rlhf.data.blocks import Spill, to_block, to_rows
from rlhf.data.load import Stream
from rlhf.data.rows import Located
from rlhf.errors import DataError
from rlhf.recipe.sections import SourceSection

COLUMNS = {
    "stack_exchange_paired": ("question", "response_j", "response_k", "qid"),
    "preference": ("prompt", "chosen", "rejected"),
    "demonstration": ("prompt", "completion"),
    "prompt": ("prompt",),
}
# good texts, and everything a text can be refused for
TEXTS = st.sampled_from(["a", "b", "<p>x</p>", "\u3000z", "\ud55c\uae00", "", " \n", "\u2028\x1c", "a\0b", "\0", None])


def both(source: SourceSection, monkeypatch: pytest.MonkeyPatch | None = None) -> tuple[Any, Any]:
    """What each way makes of a source: rows with their places and groups, quarantine, report."""
    fast = Stream([source], needs_rows=False)
    by_columns = [row for block in fast.blocks() for row in to_rows(block)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar, "PLANS", {})
        slow = Stream([source], needs_rows=False)
        by_rows = list(slow)
    results = []
    for stream, rows in ((fast, by_columns), (slow, by_rows)):
        located = [(r.file, r.row, r.data, r.group) for r in rows]
        entries = sorted(map(str, stream.quarantine.entries))
        results.append((located, entries, stream.sources, _partition([r.unit for r in rows])))
    return results[0], results[1]


def _partition(units: list[int]) -> list[int]:
    """Units by first appearance: which rows share one, whatever its number."""
    names: dict[int, int] = {}
    return [names.setdefault(unit, len(names)) for unit in units]


@pytest.mark.parametrize("format", sorted(COLUMNS))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equal_to_the_rows_way(format: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    names = COLUMNS[format]
    kinds = data.draw(st.sampled_from([pa.string(), pa.large_string()]))
    rows = data.draw(st.lists(st.tuples(*[TEXTS] * len(names)), min_size=1, max_size=30))
    rows.insert(0, tuple("abcd")[: len(names)])  # a first row that shows the format
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    table = pa.table({name: pa.array([row[i] for row in rows], type=kinds) for i, name in enumerate(names)})
    pq.write_table(table, path, row_group_size=7)
    fast, slow = both(SourceSection(path=str(path), format=format))
    assert fast == slow


def test_columns_of_other_names_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    data = pa.array([b"good", b"\xff\xfe", b"other"], type=pa.binary()).cast(pa.string(), safe=False)
    table = pa.table({"Q": data, "A": pa.array(["x", "y", "z"]), "prompt": pa.array(["no", "no", "no"])})
    pq.write_table(table, tmp_path / "t.parquet")
    columns = {"prompt": "Q", "completion": "A"}
    fast, slow = both(SourceSection(path=str(tmp_path / "t.parquet"), format="demonstration", columns=columns))
    assert fast == slow
    assert [row[2]["prompt"] for row in fast[0]] == ["good", "other"] and len(fast[1]) == 1


def test_a_column_of_groups(tmp_path: Path) -> None:
    table = pa.table(
        {"prompt": list("abcde"), "qid": pa.array([1, 2, None, 1, 2]), "even": [True, False, True, False, True]}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    for group in ("qid", "even"):  # what is neither text nor a whole number goes row by row
        fast, slow = both(SourceSection(path=str(tmp_path / "t.parquet"), format="prompt", group=group))
        assert fast == slow
    assert fast[3] == [0, 1, 0, 1, 0] and [row[3] for row in fast[0]] == ["true", "false", "true", "false", "true"]
    with pytest.raises(DataError, match="no such column"):
        both(SourceSection(path=str(tmp_path / "t.parquet"), format="prompt", group="nothing"))


def test_an_offset_slice_with_a_nul_beyond_it() -> None:
    """Arrow slices share buffers: a NUL outside the slice is none of its rows'."""
    column = pa.array(["a\0", "b", "c", "d\0"]).slice(1, 2)
    batch = pa.RecordBatch.from_arrays([column], names=["prompt"])
    done = columnar.convert_batch(batch, "prompt", SourceSection(path="x"))
    assert (done.rows.tolist(), done.doubtful.tolist()) == ([0, 1], [])


@pytest.mark.parametrize("weight", [0.3, 1.0, 2.5])
def test_weights_draw_the_same_rows_in_both_ways_and_balance(tmp_path: Path, weight: float) -> None:
    pq.write_table(pa.table({"prompt": [f"p{i}" for i in range(4000)]}), tmp_path / "t.parquet")
    fast, slow = both(SourceSection(path=str(tmp_path / "t.parquet"), weight=weight))
    assert fast == slow
    (report,) = fast[2]
    assert report["rows_in"] + report["repeated"] == report["rows_out"] + sum(report["dropped"].values())
    assert abs(report["rows_out"] - 4000 * weight) <= 4000 * 0.03
    rows = [row[1] for row in fast[0]]
    assert rows == sorted(rows) and {rows.count(i) for i in (1, 2000, 4000)} <= {int(weight), int(weight) + 1}


def test_a_weight_is_drawn_by_the_seed(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": [f"p{i}" for i in range(300)]}), tmp_path / "t.parquet")
    source = SourceSection(path=str(tmp_path / "t.parquet"), weight=0.5)
    drawn = [[row.row for row in Stream([source], seed=seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_spill_gives_back_what_it_took(tmp_path: Path) -> None:
    rows = [
        Located("f", 1, {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 0.5}, 7, "g"),
        Located("f", 2, {"prompt": "q", "chosen": "c", "rejected": "d"}, 8),
        Located("other", 9, {"prompt": "r", "chosen": "e", "rejected": "f"}, 7),
    ]
    spill = Spill(tmp_path / "s")
    spill.add(to_block(rows[:2]))
    spill.add(to_block(rows[2:]))
    spill.close()
    for _ in range(2):
        assert [row for block in spill.blocks() for row in to_rows(block)] == rows
    assert spill.used >= {"margin", "group"} and spill.rows == 3
    only = list(spill.blocks(["chosen"]))
    assert [c for block in only for c in block.column("chosen").to_pylist()] == ["a", "c", "e"]
    assert "rejected" not in only[0].column_names
    with pytest.raises(DataError, match="one folder holds rows of one kind"):
        Spill.add(spill, to_block([Located("z", 1, {"prompt": "p"}, 1)]))
