"""What the tests of recipes share: a folder with one recipe, `r.yaml`, whose name makes messages short."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

DPO = """\
method: dpo
output_dir: out
model: {name_or_path: base}
data:
  train: rows.jsonl
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe is `r.yaml` in the working folder, so that messages begin with a short `r.yaml:line`."""
    monkeypatch.chdir(tmp_path)


def write(text: str) -> str:
    Path("r.yaml").write_text(dedent(text), encoding="utf-8")
    return "r.yaml"
