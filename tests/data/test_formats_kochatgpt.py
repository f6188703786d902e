"""KoChatGPT's four files, two of which are not what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.data.rankings import pairs_of
from rlhf.errors import DataError
from rlhf.recipe.steps import PairsStep
from tests.data.support import load_one, real, refused, row


def test_kochatgpt() -> None:
    data = {"prompt": "p", "completion_0": "a", "completion_1": "b", "completion_2": "c", "ranking": [1, 2, 0], "x": 1}
    assert row("kochatgpt_rm", **data) == {"prompt": "p", "completions": ["a", "b", "c"], "ranking": [1, 2, 0]}
    for ranking in ([1, 2], [1, 1, 0], [1, 2, 3], [0, 1, 2.0], [True, 0, 2], "x", None):
        assert refused("kochatgpt_rm", **data | {"ranking": ranking})[0] == "ranking"
    assert refused("kochatgpt_rm", **data | {"completion_1": None}) == (
        "completion_0",
        "needs completion_0, completion_1, ... without a gap",
    )


def test_more_than_ten_kochatgpt_completions_stay_in_order() -> None:
    data = {f"completion_{i}": str(i) for i in range(12)}
    assert row("kochatgpt_rm", prompt="p", ranking=list(range(12)), **data)["completions"] == list(map(str, range(12)))


@pytest.mark.parametrize(
    ("ranking", "best_first"), [([1, 2, 0], "bca"), ([2, 0, 1], "cab"), ([2, 1, 0], "cba"), ([0, 1, 2], "abc")]
)
def test_a_ranking_is_an_order(ranking: list[int], best_first: str) -> None:
    """Read as ranks, the two 3-cycles would give two of the three pairs the wrong way round; the others look the same either way."""
    data = row("kochatgpt_rm", prompt="p", completion_0="a", completion_1="b", completion_2="c", ranking=ranking)
    made, _ = pairs_of(data, PairsStep())
    x, y, z = best_first
    assert {(p["chosen"], p["rejected"]) for p in made} == {(x, y), (x, z), (y, z)}


def test_the_demonstrations_array_with_a_bom_and_stray_quotes(tmp_path: Path) -> None:
    rows = [
        {"prompt": "불고기용 고기 한우에요?", "completion": "'저는 챗봇입니다.", "tokens": 9},
        {"prompt": "앱", "completion": "'첫째 줄\\n둘째 줄, \\'인용\\''", "tokens": 9},
        {"prompt": "말", "completion": "'안녕'이라고 말했다.", "tokens": 9},
        {"prompt": "코드", "completion": 'cout << "\\n";\nreturn 0;', "tokens": 9},
        {"prompt": "끝", "completion": "끝났습니다.'", "tokens": 9},
        {"prompt": "빈", "completion": "''", "tokens": 9},
    ]
    path = tmp_path / "kochatgpt_1_SFT.jsonl"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=4), encoding="utf-8-sig")
    loaded = load_one(path, format="kochatgpt_sft")
    assert [r.data["completion"] for r in loaded.rows] == [
        "저는 챗봇입니다.",
        "첫째 줄\n둘째 줄, '인용'",
        "'안녕'이라고 말했다.",
        'cout << "\\n";\nreturn 0;',
        "끝났습니다.",
    ]
    assert loaded.dropped == {"completion: is empty": 1}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert [r.data for r in load_one(tmp_path / "t.parquet", format="kochatgpt_sft").rows] == [
        r.data for r in loaded.rows
    ]
    assert load_one(path).rows[0].data["completion"].startswith("'"), "without the name, a text is left as it is"


def test_the_real_prompts() -> None:
    loaded = load_one(real("kochatgpt/kochatgpt_3_PPO.jsonl"), format="kochatgpt_ppo")
    assert (loaded.sources[0]["kind"], len(loaded.rows), loaded.dropped) == ("prompt", 11_997, {"prompt: is empty": 3})
    assert len({r.data["prompt"] for r in loaded.rows}) == 11_997 - 52, (
        "54 repeat one before them, two of which are empty"
    )


def test_the_real_conversations() -> None:
    path = real("kochatgpt/kochatgpt_1_SFT_conversation.jsonl")
    loaded = load_one(path)
    assert (loaded.sources[0]["format"], loaded.sources[0]["recognised"], len(loaded.rows)) == (
        "kochatgpt_chat",
        True,
        439,
    )
    said = []
    for located in loaded.rows:
        assert [m["role"] for m in located.data["prompt"]] == ["user", "assistant"] * 3 + ["user"]
        said += [m["content"] for m in (*located.data["prompt"], *located.data["completion"])]
    text = Path(path).read_text(encoding="utf-8")
    turns = [line.partition(">:")[2].strip() for line in text.splitlines() if line.startswith(("<사람>:", "<챗봇>:"))]
    assert said == turns, "every turn, in order, and nothing else"


def test_conversations_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text(
        "<<start conversation>>\n<사람>: 하나\n더\n\n<챗봇>: 둘\n"
        "<<start conversation>>\n<<start conversation>>\n무엇\n<사람>: a\n<챗봇>: b\n"
        "<<start conversation>>\n<사람>: 끝\n<<start conversation>>\n<고양이>: 야옹\n<챗봇>: b\n",
        encoding="utf-8-sig",
    )
    loaded = load_one(path)
    assert [r.data["prompt"][0]["content"] for r in loaded.rows] == ["하나\n더"]
    assert [(e["row"], e["reason"].split(":")[0]) for e in loaded.quarantine.entries] == [
        (2, "a conversation without a turn"),
        (3, "text before the first speaker"),
        (4, "must be a dialogue that ends with an assistant message"),
        (5, "holds a message without a known role"),
    ]


def test_the_conversation_file_under_another_name_says_which_format_it_is() -> None:
    with pytest.raises(DataError, match=r"found conversation\. These are the columns of format: kochatgpt_chat"):
        load_one(real("kochatgpt/kochatgpt_1_SFT_conversation.jsonl"), format="kochatgpt_sft")
