"""Reading the real files, some of which are not what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.support import read_all, real


def test_real_files() -> None:
    assert len(read_all(real("kochatgpt/kochatgpt_3_PPO.jsonl"))[0]) == 12_000
    assert len(read_all(real("nsmc/reviews_30k.tsv"))[0]) == 29_999  # and a header line
    assert len(read_all(real("songys_chatbot/ChatbotData.csv"))[0]) == 11_823


def test_a_real_conversation_file_is_read_as_what_it_is() -> None:
    rows, quarantine = read_all(real("kochatgpt/kochatgpt_1_SFT_conversation.jsonl"))
    assert [r.row for r in rows] == list(range(1, 440))
    assert quarantine.rows_in == 439
    assert all([t["from"] for t in r.data["conversation"]] == ["사람", "챗봇"] * 4 for r in rows)


@pytest.mark.parametrize("name", ["ko_hh.jsonl", "ko_hh.txt"])
def test_a_real_dirty_file(tmp_path: Path, name: str) -> None:
    """A machine translated the JSON too. 437 lines still parse; two of them have a key twice."""
    path = tmp_path / name
    path.symlink_to(real("ko_hh/ko_harmless_base_test.txt"))
    rows, quarantine = read_all(path)
    texts = path.read_text(encoding="utf-8").split("\n")
    parse = [number for number, text in enumerate(texts, 1) if _parses(text)]
    assert len(parse) == 437
    assert len(rows) == 435 and {r.row for r in rows} <= set(parse)
    assert quarantine.rows_in == 2312 == 435 + sum(quarantine.counts().values())
    assert sum(n for reason, n in quarantine.counts().items() if reason.startswith("duplicate key")) == 2


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
