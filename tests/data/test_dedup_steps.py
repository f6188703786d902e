"""Dedup and decontamination as steps of a build: units, groups, what is kept, and the file of what went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import DataError
from tests.data.support import lines, real
from tests.data.test_build import balanced, jsonl, make, read

LONG = "the quick brown fox jumps over the lazy dog and runs away into the dark wood where nobody finds it again "


def pair(prompt: str, chosen: str = "good", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": "bad"} | more


def grouped(path: str) -> dict[str, Any]:
    return {"path": path, "group": "qid"}


def test_rows_of_a_group_are_no_duplicates_of_each_other_and_go_together(tmp_path: Path) -> None:
    rows = [
        pair(LONG, "a", qid="1"),
        pair("another question altogether, about beer", "b", qid="2"),
        pair(LONG, "c", qid="1"),  # the same question, not next to it
        pair(LONG + "!", "d", qid="3"),
        pair(LONG + "!", "e", qid="3"),
    ]
    path = lines(tmp_path / "r.jsonl", rows)
    report = make(tmp_path / "out", [grouped(path)], {"dedup": {"column": "prompt"}})
    balanced(report)
    assert [row["chosen"] for row in read(tmp_path / "out")] == ["a", "b", "c"]
    assert report["steps"][0]["texts"] == 3 and report["dropped"] == {"duplicate": 2}
    removed = jsonl(tmp_path / "out" / "removed.jsonl")
    assert [(r["row"], r["witness"]["row"]) for r in removed] == [(4, 1), (5, 1)]
    assert removed[0]["witness"]["text"].startswith("the quick") and removed[0]["jaccard"] == 1.0
    assert [row["group"] for row in read(tmp_path / "out")] == ["1", "2", "1"]


def test_without_a_group_the_same_question_is_a_duplicate(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [pair(LONG, "a"), pair(LONG, "c")])
    make(tmp_path / "out", [path], {"dedup": {}})
    (row,) = read(tmp_path / "out")
    assert row == pair(LONG, "a"), "no column that no row uses"


def test_a_group_of_the_same_name_in_another_source_is_another_group(tmp_path: Path) -> None:
    a = lines(tmp_path / "a.jsonl", [pair(LONG, "a", qid="1")])
    b = lines(tmp_path / "b.jsonl", [pair(LONG, "b", qid="1")])
    report = make(tmp_path / "out", [grouped(a), grouped(b)], {"dedup": {}})
    assert report["dropped"] == {"duplicate": 1}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, "first"),
        ({"keep": "longest"}, "much longer than the first"),
        ({"keep": "best", "best_by": "margin"}, "best"),
    ],
)
def test_which_of_those_alike_stays(tmp_path: Path, options: dict[str, Any], kept: str) -> None:
    rows = [
        pair(LONG, "first", margin=1),
        pair(LONG, "best", margin=9),
        pair(LONG + " ...  ... ", "much longer than the first", margin=2),
        pair("quite another thing, which stays in any case", "x", margin=0),
    ]
    path = lines(tmp_path / "r.jsonl", rows)
    make(tmp_path / "out", [path], {"dedup": {"column": "prompt", **options}})
    assert [row["chosen"] for row in read(tmp_path / "out")] == [kept, "x"]


def test_on_both_columns(tmp_path: Path) -> None:
    """Alike in the prompt alone, or the answer alone, is not alike."""
    answer = "because of the yeast, which needs its time and is best left alone in a cool and quiet cellar"
    rows = [pair(LONG, answer), pair(LONG, "short"), pair("p", answer), pair(LONG, answer)]
    path = lines(tmp_path / "r.jsonl", rows)
    report = make(tmp_path / "out", [path], {"dedup": {"column": ["prompt", "chosen"], "max_chars": None}})
    assert report["rows_out"] == 3 and jsonl(tmp_path / "out" / "removed.jsonl")[0]["row"] == 4


@pytest.mark.parametrize("engine", ["fast", "exact", "datasketch"])
def test_decontamination_against_an_evaluation_set(tmp_path: Path, engine: str) -> None:
    train = lines(
        tmp_path / "t.jsonl", [pair("mine"), pair(LONG), pair("mine"), pair(LONG + "?" * (engine != "exact"))]
    )
    held = lines(tmp_path / "e.jsonl", [{"prompt": "unrelated text of some length"}, {"prompt": LONG}])
    step = {"decontaminate": {"column": "prompt", "engine": engine, "against": [{"path": held}]}}
    report = make(tmp_path / "out", [train], step)
    balanced(report)
    assert [row["prompt"] for row in read(tmp_path / "out")] == ["mine", "mine"], (
        "its own duplicates are not its business"
    )
    assert report["dropped"] == {"match of against": 2}
    removed = jsonl(tmp_path / "out" / "removed.jsonl")
    assert [(r["row"], r["witness"]["file"], r["witness"]["row"]) for r in removed] == [(2, held, 2), (4, held, 2)]
    assert report["steps"][0]["against"][0]["rows_out"] == 2


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [pair("a"), pair("b")])
    held = lines(tmp_path / "e.jsonl", [{"prompt": "x"}])
    with pytest.raises(
        DataError, match=r"r\.jsonl:1: .*best_by: no such column; these rows have prompt, chosen, rejected"
    ):
        make(tmp_path / "o", [path], {"dedup": {"keep": "best", "best_by": "margin"}})
    with pytest.raises(DataError, match=r"e\.jsonl:1: .*the rows of against have prompt"):
        make(tmp_path / "o", [path], {"decontaminate": {"column": "chosen", "against": [{"path": held}]}})
    with pytest.raises(DataError, match=r"split\.by: no such column"):
        make(tmp_path / "o", [path], {"split": {"by": "group"}})


def test_a_split_by_group(tmp_path: Path) -> None:
    rows = [pair(f"prompt {i}", qid=str(i // 4)) for i in range(200)]
    report = make(
        tmp_path / "out", [grouped(lines(tmp_path / "r.jsonl", rows))], {"split": {"test": 0.2, "by": "group"}}
    )
    sides = [{row["group"] for row in read(tmp_path / "out", side)} for side in ("train", "test")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 50
    assert report["splits"]["test"] % 4 == 0


def test_a_row_without_its_group_is_set_aside(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [pair("a", qid="1"), pair("b", qid=None), pair("c", qid="2")])
    report = make(tmp_path / "out", [grouped(path)], {"split": {"by": "group"}})
    assert report["dropped"] == {"qid: is missing, and rows are grouped by it": 1}


def test_a_row_of_a_source_without_groups_cannot_be_split_by_group(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [pair("a", qid="1"), pair("c", qid="2")])
    other = lines(tmp_path / "s.jsonl", [pair("x")])
    with pytest.raises(DataError, match=r"s\.jsonl:1: .*group"):
        make(tmp_path / "out", [grouped(path), other], {"split": {"by": "group"}})


def test_strict_stops_at_the_first_bad_row(tmp_path: Path) -> None:
    from rlhf.data.build import build
    from rlhf.recipe.schema import DataRecipe

    path = lines(tmp_path / "r.jsonl", [pair("a"), {"prompt": "b"}, pair("c")])
    recipe = {"method": "data", "output_dir": str(tmp_path / "o"), "sources": [{"path": path}], "strict": True}
    with pytest.raises(DataError, match=r"r\.jsonl:2: "):
        build(DataRecipe.model_validate(recipe))
    assert not (tmp_path / "o").exists()


def test_real_stack_exchange_questions(tmp_path: Path) -> None:
    """The pairs of a question stay together, and no question is on both sides."""
    sources = [real(f"stackexchange/{site}_pairs.jsonl.gz") for site in ("beer", "history_meta")]
    report = make(tmp_path / "out", sources, {"dedup": {}}, {"split": {"by": "group", "test": 0.1}})
    balanced(report)
    assert report["rows_in"] == 2173 + 1194 and report["steps"][0]["texts"] == 388 + 259
    train, test = read(tmp_path / "out"), read(tmp_path / "out", "test")
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
