"""Data sets by their hub name: against a server that speaks the hub's protocol, offline, and not there.

The library reads its environment once, so each setting is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.rows import Quarantine
from rlhf.data.sources import read
from rlhf.errors import DataError, SetupError
from rlhf.recipe.sections import SourceSection
from tests.data.hub_server import hub

pytest.importorskip("datasets")

SCRIPT = """
import json, sys
from rlhf.data.load import Stream
from rlhf.errors import RlhfError
from rlhf.recipe.sections import SourceSection
for options in json.loads(sys.argv[1]):
    try:
        loaded = Stream([SourceSection(**options)])
        rows = [[r.file, r.row, r.group, r.data] for r in loaded]
        print(json.dumps({"report": loaded.sources[0], "count": len(rows), "rows": rows[:2]}))
    except RlhfError as error:
        print(json.dumps({"error": str(error), "code": error.exit_code}))
"""


def run(home: Path, *sources: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
    settings = {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(sources)],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    name = {"path": "owner/pairs"}
    with hub() as address:
        train, test, other, picked, no_split, no_config, nowhere = run(
            tmp_path,
            name,
            name | {"split": "test"},
            name | {"config": "other"},
            name | {"where": {"prompt": ["train 7", "train 4999"]}, "max_rows": 2},
            name | {"split": "dev"},
            name | {"config": "third"},
            {"path": "owner/none"},
            HF_ENDPOINT=address,
        )
        sources = (name | {"config": "default"}, name, {"path": "owner/none"})
        again, which, missing = run(tmp_path, *sources, HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert train["count"] == 4999 and train["report"]["dropped"] == {"completion: is empty": 1}
    assert train["rows"][0] == ["owner/pairs:train", 2, None, {"prompt": "train 1", "completion": "c"}]
    assert (train["report"]["format"], train["report"]["recognised"]) == ("demonstration", True)
    assert test["rows"] == [["owner/pairs:test", 1, None, {"prompt": "test", "completion": "하나"}]]
    assert other["rows"][0][2] == "7" and other["report"]["format"] == "stack_exchange_paired"
    assert [row[1] for row in picked["rows"]] == [8, 5000]
    assert no_split["code"] == 3 and "no split 'dev'" in no_split["error"]
    assert "train" in no_split["error"] and "test" in no_split["error"], "the splits there are"
    assert no_config["code"] == 3 and "'default', 'other'" in no_config["error"] and "config" in no_config["error"]
    assert nowhere["code"] == 3 and "owner/none: no such file or folder here" in nowhere["error"]
    assert address in nowhere["error"] and "check the spelling" in nowhere["error"]
    assert again["rows"] == train["rows"], "what was downloaded can be read offline"
    assert which["error"].endswith("in the cache: other, default. Say config: NAME"), "both were downloaded above"
    assert "HF_HUB_OFFLINE=1" in missing["error"] and "unset it" in missing["error"]


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SetupError, match=r"owner/name: no such file or folder(.|\n)*rlhf\[hub\]"):
        list(read(SourceSection(path="owner/name"), Quarantine()))


@pytest.mark.parametrize(
    "path", ["data/rows.jsonl", "a/b/c", "/owner/name", "./owner/name", "name", "rows/x.xml.gz", "a b/c"]
)
def test_a_path_that_is_no_name_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="no such file or folder"):
        list(read(SourceSection(path=path), Quarantine()))


def test_a_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    with pytest.raises(DataError, match="no split 'train'"):
        list(read(SourceSection(path="owner/name"), Quarantine()))


def test_config_is_for_the_hub_only(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"prompt": "p"}\n')
    with pytest.raises(
        DataError, match="config: names a part of a data set of the hub; this is a local file or folder"
    ):
        list(read(SourceSection(path=str(tmp_path / "r.jsonl"), config="x"), Quarantine()))


TOKENISE = """
import json, sys
from rlhf.recipe.schema import row_kinds
from rlhf.tokens import dataset
from rlhf.recipe.sections import DataSection, SourceSection
from tests.tiny import tiny_tokenizer
section = DataSection(train=[SourceSection(path="owner/pairs", split=sys.argv[1])])
rows = dataset.tokenize(section, tiny_tokenizer(), row_kinds("sft"), seed=0)
dataset.Renderer = None  # a second time is found, not made
again = dataset.tokenize(section, tiny_tokenizer(), row_kinds("sft"), seed=0)
print(json.dumps([len(rows.segments), rows.fingerprint, again.fingerprint]))
"""


def test_rows_of_the_hub_are_tokenised_once_and_by_their_content(tmp_path: Path) -> None:
    settings = {"HF_HOME": str(tmp_path / "home"), "no_proxy": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
    with hub() as address:
        environment = {**os.environ, **settings, "HF_ENDPOINT": address}
        found = []
        for split in ("train", "test"):
            command = [sys.executable, "-c", TOKENISE, split]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            found.append(json.loads(done.stdout.splitlines()[-1]))
    assert [count for count, *_ in found] == [4999, 1]
    assert all(first == again for _, first, again in found) and found[0][1] != found[1][1]
