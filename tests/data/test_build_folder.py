"""The folder that a build writes: one build at a time, killed at any point, and never its own source."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from rlhf.data.build_folder import replacing
from rlhf.errors import DataError, RecipeError
from tests.data.support import lines
from tests.data.test_build import jsonl, make, ranking, read


def write(folder: Path, generation: str, *names: str) -> None:
    with replacing(folder) as (new, scratch):
        (scratch / "spill").write_text("x")
        for name in names:
            (new / name).write_text(generation)


def state(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted(folder.iterdir()) if not p.name.startswith(".")}


def killed_at_rename(number: int, folder: Path) -> bool:
    """Whether a process that writes the folder anew was killed, without a chance to clean up, at its rename of this number."""
    child = os.fork()
    if child == 0:
        left, rename = [number], Path.rename

        def dying(self: Path, target: Path) -> Path:
            if not left[0]:
                os._exit(9)
            left[0] -= 1
            return rename(self, target)

        Path.rename = dying  # type: ignore[method-assign, assignment]
        write(folder, "new", "report.json", "train", "quarantine.jsonl")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_killed_at_any_rename_it_is_the_old_build_or_the_new_one(tmp_path: Path) -> None:
    old = dict.fromkeys(["report.json", "test", "train"], "old")
    new = dict.fromkeys(["quarantine.jsonl", "report.json", "train"], "new")
    number, seen = 0, []
    while True:
        folder = tmp_path / str(number)
        write(folder, "old", *old)
        if not killed_at_rename(number, folder):
            break
        with suppress(ZeroDivisionError), replacing(folder):  # the next build finds it, and fails
            raise ZeroDivisionError
        seen.append(state(folder))
        assert {p.name for p in folder.iterdir()} == set(seen[-1])  # nothing hidden is left
        number += 1
    assert seen == [old] + [new] * (number - 1)
    assert number == 1 + 3 + 1 + 3  # the commit, three old files, the mark that they are out, three new ones


def test_a_second_build_at_once_is_refused_and_leaves_the_first_alone(tmp_path: Path) -> None:
    out, rows = tmp_path / "out", lines(tmp_path / "rows.jsonl", [ranking(1)])
    with replacing(out) as (new, _):
        with pytest.raises(RecipeError, match="another build is writing into"):
            make(out, [rows])
        (new / "report.json").write_text("the first")
    assert state(out) == {"report.json": "the first"}
    make(out, [rows])
    assert len(read(out)) == 1


@pytest.mark.parametrize("path", ["out", "out/train/*.parquet", "out/*.jsonl", "*/train/*"])
def test_a_build_does_not_read_what_it_writes(tmp_path: Path, path: str) -> None:
    out = tmp_path / "out"
    source = lines(tmp_path / "rows.jsonl", [ranking(i) for i in range(9)] + [{}])
    make(out, [source], {"split": {"test": 0.5}})
    before = read(out, "test")
    with pytest.raises(
        RecipeError, match=r"sources\.0\.path: .* is this build's own: give the build another output_dir"
    ):
        make(out, [tmp_path / path], {"dedup": {}})
    with pytest.raises(RecipeError, match=r"steps\.0\.decontaminate\.against\.0\.path"):
        make(out, [source], {"decontaminate": {"against": [{"path": str(tmp_path / path)}]}})
    assert read(out, "test") == before and len(before) > 0


def test_a_source_beside_the_output_in_one_folder_is_fine(tmp_path: Path) -> None:
    source = lines(tmp_path / "rows.jsonl", [ranking(i) for i in range(3)])
    assert make(tmp_path, [source])["rows_out"] == make(tmp_path, [source])["rows_out"] == 3
    with pytest.raises(DataError, match="no such file"):
        make(tmp_path / "never", [tmp_path / "nothing.jsonl"])
    assert not (tmp_path / "never").exists()


def test_the_pairs_of_a_group_stay_together_when_a_built_folder_is_read_again(tmp_path: Path) -> None:
    pairs = [
        {"qid": i // 3, "question": f"How does number {i // 3} end?", "response_j": f"a{i}", "response_k": f"b{i}"}
        for i in range(9)
    ]
    make(tmp_path / "built", [lines(tmp_path / "se.jsonl", pairs)])
    again = make(
        tmp_path / "again",
        [tmp_path / "built"],
        {"dedup": {"engine": "exact"}},
        {"split": {"by": "group", "test": 0.4}},
    )
    assert again["rows_out"] == 9 and jsonl(tmp_path / "again" / "removed.jsonl") == []
    sides = [{row["group"] for row in read(tmp_path / "again", side)} for side in ("train", "test")]
    assert sides[0] | sides[1] == {"0", "1", "2"} and not sides[0] & sides[1]
