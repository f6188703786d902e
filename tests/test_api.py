"""Every snippet of docs/api.md runs as it stands there, in order."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import rlhf
from rlhf.errors import RecipeError

PAGE = (Path(__file__).parents[1] / "docs/api.md").read_text(encoding="utf-8")


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "p", "completions": ["a", "b"], "ranking": [1, 0]}
    Path("rankings.jsonl").write_text(json.dumps(row) + "\n")
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(code, "docs/api.md", "exec"), names)
    assert json.loads(Path("outputs/pairs/report.json").read_text())["rows_out"] == 1
    out = capsys.readouterr().out
    assert "recipe: trainig: unknown key; did you mean 'training'?" in out
    assert "ranking 1 {}" in out


def test_a_dict_is_not_changed_and_takes_overrides() -> None:
    recipe = {"method": "dpo", "output_dir": "o", "model": {"name_or_path": "m"}, "data": {"train": [{"path": "x"}]}}
    with pytest.raises(RecipeError, match=r"training\.lr: unknown key"):
        rlhf.run(recipe, ["training.lr=1", "data.max_length=5"])
    assert recipe["data"] == {"train": [{"path": "x"}]}
