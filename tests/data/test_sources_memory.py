"""Large files are read in the memory of a few rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.data.support import read_in_a_process

ROWS = 20_000
TEXT = "a text that is as long as an answer may be, " * 60


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.csv", "r.tsv"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    """50 MB of rows add less than 40 MB to the interpreter and its imports."""
    path = tmp_path / name
    mark = {"csv": ",", "tsv": "\t"}.get(name.rpartition(".")[2])
    with gzip.open(path, "wt", compresslevel=1) if name.endswith("gz") else path.open("w") as f:
        f.write(f"prompt{mark}completion\n" if mark else "")
        for i in range(ROWS):
            f.write(f'{i}{mark}"{TEXT}"\n' if mark else json.dumps({"prompt": str(i), "completion": TEXT}) + "\n")
    rows, peak = read_in_a_process(path)
    assert rows == ROWS and peak < 85_000, f"{peak} KiB"
