"""Texts in memory and spooled to a file: the same, cut where asked, and nothing unreadable let in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.dedup import Texts, TextWriter, dedup
from rlhf.errors import DataError
from rlhf.recipe.steps import MatchSection
from tests.data.dedup.oracle import near_duplicates


@given(st.lists(st.text()))
def test_in_memory(texts: list[str]) -> None:
    assert list(Texts.of(texts)) == texts
    assert len(Texts.of(texts)) == len(texts)


def test_lone_surrogates_are_kept() -> None:
    assert list(Texts.of(["a\ud800b"])) == ["a\ud800b"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_spooled(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["", "abcdef", "가나다라마바", "👍🏽👍🏽👍🏽", "é" * 10, "short"]
    with TextWriter(tmp_path / "a", 5) as writer:
        writer.write(pa.array(texts, kind))
        writer.write(pa.chunked_array([texts[:2], [], texts[2:]], kind))
        writer.write(pa.array(texts, kind).slice(2, 3))
        spooled = writer.close()
    expected = [t[:5] for t in texts + texts + texts[2:5]]
    assert list(spooled) == expected and spooled[7] == "abcde"
    spooled.release()
    assert list(spooled) == expected
    assert not spooled.data.flags.writeable
    with pytest.raises(IndexError, match="text 15 of 15"):
        spooled[15]


def test_spooled_whole_and_deduplicated(tmp_path: Path) -> None:
    texts = near_duplicates(600, 0)
    with TextWriter(tmp_path / "a", None) as writer:
        writer.write(pa.array(texts))
        spooled = writer.close()
    (tmp_path / "a").unlink()
    assert list(spooled) == texts
    for engine in ("exact", "fast"):
        step = MatchSection(engine=engine)
        assert list(dedup(spooled, step)) == list(dedup(texts, step)) != []


@pytest.mark.parametrize("engine", ["exact", "fast"])
def test_nothing_at_all(tmp_path: Path, engine: str) -> None:
    with TextWriter(tmp_path / "a", 5) as writer:
        empty = writer.close()
    assert len(empty) == 0 and len(dedup(empty, MatchSection(engine=engine))) == 0
    with TextWriter(tmp_path / "a", 5) as writer:
        writer.write(pa.array(["", ""]))
        blank = writer.close()
    assert [(r.index, r.witness) for r in dedup(blank, MatchSection(engine=engine))] == [(1, 0)]


def test_what_is_no_text(tmp_path: Path) -> None:
    with TextWriter(tmp_path / "a", 5) as writer:
        writer.write(pa.array(["a", "b"]))
        with pytest.raises(DataError, match=r"a:4: there is a null in place of a text"):
            writer.write(pa.array(["c", None]))
        bad = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"a\xff"))
        with pytest.raises(DataError, match=r"after row 2: text that is not valid UTF-8"):
            writer.write(bad)
    with pytest.raises(ValueError, match="offsets must rise"):
        Texts(np.zeros(3, np.uint8), np.array([0, 2, 1]))
