"""`rlhf data dedup`, `data cache` and `data build --strict`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from rlhf.cli import app
from rlhf.recipe.schema import row_kinds
from rlhf.recipe.sections import DataSection, SourceSection
from rlhf.tokens.dataset import tokenize
from tests.tiny import tiny_tokenizer

LONG = "the quick brown fox jumps over the lazy dog and runs away into the dark wood"
ROWS = [
    {"prompt": LONG, "chosen": "a", "rejected": "b"},
    {"prompt": LONG + "!", "chosen": "c", "rejected": "d"},
    {"prompt": "another one", "chosen": "e", "rejected": "f"},
]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rlhf(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "1000"})  # no path is too long for a line
    return result.exit_code, result.output


def test_dedup_in_one_line(tmp_path: Path) -> None:
    path, out = write(tmp_path / "r.jsonl", ROWS), tmp_path / "out"
    code, said = rlhf("data", "dedup", path, "-o", str(out))
    assert code == 0 and "1 duplicate" in said and f"done: {out}" in said
    assert pq.read_table(out / "train").column("chosen").to_pylist() == ["a", "e"]
    (removed,) = map(json.loads, (out / "removed.jsonl").read_text().splitlines())
    assert (removed["row"], removed["witness"]["row"], removed["jaccard"]) == (2, 1, 1.0)
    code, said = rlhf(
        "data", "dedup", path, "-o", str(out), "--column", "prompt", "--column", "chosen", "--engine", "exact"
    )
    assert code == 0 and pq.read_table(out / "train").num_rows == 3


def test_dedup_by_settings_of_its_own(tmp_path: Path) -> None:
    """Texts that differ only after 40 characters are alike when 40 are compared, and not when all are."""
    rows = [{"prompt": "x" * 40 + word * 9, "chosen": "a", "rejected": "b"} for word in ("one", "two")]
    path, out = write(tmp_path / "r.jsonl", rows), tmp_path / "out"
    settings = ("--num-perm", "128", "--shingle-size", "3")
    for max_chars, kept in (("40", 1), ("0", 2)):
        assert rlhf("data", "dedup", path, "-o", str(out), *settings, "--max-chars", max_chars)[0] == 0
        assert pq.read_table(out / "train").num_rows == kept
    (step,) = json.loads((out / "report.json").read_text())["steps"]
    assert (step["num_perm"], step["shingle_size"], step["max_chars"]) == (128, 3, None)


def test_decontamination_in_one_line(tmp_path: Path) -> None:
    path, held = write(tmp_path / "r.jsonl", ROWS), write(tmp_path / "e.jsonl", [{"prompt": LONG}])
    code, said = rlhf("data", "dedup", path, "-o", str(tmp_path / "out"), "--against", held)
    assert code == 0 and "2 match of against" in said
    assert pq.read_table(tmp_path / "out" / "train").column("chosen").to_pylist() == ["e"]


def test_dedup_takes_the_keys_of_a_source(tmp_path: Path) -> None:
    path, out = tmp_path / "r.csv", tmp_path / "out"
    path.write_text(f"Q,A\n{LONG},a\n{LONG}!,b\n")
    assert rlhf("data", "dedup", str(path), "-o", str(out))[0] == 3
    keys = ["format=demonstration", "columns.prompt=Q", "columns.completion=A"]
    assert rlhf("data", "dedup", str(path), "-o", str(out), *keys)[0] == 0
    assert pq.read_table(out / "train").to_pylist() == [{"prompt": LONG, "completion": "a"}]
    code, said = rlhf("data", "dedup", str(path), "-o", str(out), "formt=hh")
    assert code == 2 and "did you mean 'format'?" in said


def test_dedup_of_a_folder_leaves_no_split_behind_unsaid(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    source = write(tmp_path / "r.jsonl", [{"prompt": f"{i} {LONG[i:]}", "completion": "x"} for i in range(20)])
    recipe.write_text(
        f"method: data\noutput_dir: {tmp_path / 'built'}\nsources: [{{path: {source}}}]\nsteps: [{{split: {{test: 0.5}}}}]\n"
    )
    assert rlhf("data", "build", str(recipe))[0] == 0
    built, out = str(tmp_path / "built"), str(tmp_path / "out")
    code, said = rlhf("data", "dedup", built, "-o", out)
    assert code == 2 and "holds train, test; say which, for example: split=train" in " ".join(said.split())
    assert rlhf("data", "dedup", built, "-o", out, "split=test", "--engine", "exact")[0] == 0
    assert pq.read_table(out + "/train").num_rows == pq.read_table(built + "/test").num_rows


def test_dedup_of_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", ROWS)
    code, said = rlhf("data", "dedup", path, "-o", str(tmp_path / "out"), "--column", "answer")
    assert code == 3 and "these rows have prompt, chosen, rejected" in said
    assert rlhf("data", "dedup", path, "-o", str(tmp_path / "out"), "--engine", "slow")[0] == 2


def test_the_cache_is_listed_and_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_TOKENS", str(tmp_path / "tokens"))
    path = write(tmp_path / "r.jsonl", ROWS)
    tokenize(DataSection(train=[SourceSection(path=path)]), tiny_tokenizer(), row_kinds("dpo"), seed=0)
    code, said = rlhf("data", "cache")
    assert code == 0 and "3 rows" in said and path in said and "1 in " in said
    assert rlhf("data", "cache", "--clean", "--older-than", "1")[1].startswith("removed 0 in")
    assert "removed 1 in" in rlhf("data", "cache", "--clean")[1]
    assert rlhf("data", "cache")[1].startswith("0 in ")


def test_strict(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [ROWS[0], {"prompt": "no pair"}, ROWS[2]])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"method: data\noutput_dir: {tmp_path / 'out'}\nsources: [{{path: {path}}}]\n")
    code, said = rlhf("data", "build", str(recipe), "--strict")
    assert code == 3 and "r.jsonl:2: chosen: is missing" in said
    assert rlhf("data", "build", str(recipe))[0] == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dropped"] == {"chosen: is missing": 1}
