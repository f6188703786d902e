"""ShareGPT, messages, unpaired labels, and OpenAssistant's trees."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.errors import DataError
from tests.data.support import lines, load_one, real, refused, row

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Yes"), ("assistant", "No")))
SHARE = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]


def test_share_gpt() -> None:
    assert row("sharegpt", conversations=SHARE) == {"prompt": [USER], "completion": [GOOD]}
    system = {"role": "system", "content": "Be short."}
    assert row("sharegpt", conversations=SHARE, system="Be short.", tools="") == {
        "prompt": [system, USER],
        "completion": [GOOD],
    }
    pair = row("sharegpt", conversations=SHARE[:1], chosen=SHARE[1], rejected={"from": "gpt", "value": "No"})
    assert pair == {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
    for name in ("kto_tag", "label"):
        assert row("sharegpt", conversations=SHARE, **{name: False}) == {
            "prompt": [USER],
            "completion": [GOOD],
            "label": False,
        }
    assert refused("sharegpt", conversations=SHARE, tools="[{}]")[0] == "tools"
    assert refused("sharegpt", conversations=SHARE[:1])[1] == "must be a dialogue that ends with an assistant message"
    assert refused("sharegpt", conversations=SHARE, chosen=SHARE[1], rejected=SHARE[1])[0] == "conversations"
    assert refused("sharegpt", conversations=SHARE[:1], chosen=SHARE[1], rejected=SHARE[1])[1] == "is equal to chosen"
    assert refused("sharegpt", conversations=SHARE[:1], chosen=SHARE[1])[0] == "rejected"


def test_the_real_share_gpt_preferences() -> None:
    path = real("llamafactory/dpo_en_demo.json.gz")
    loaded = load_one(path)
    (report,) = loaded.sources
    assert (report["format"], report["kind"], report["rows_out"]) == ("sharegpt", "preference", 300)
    for located, raw in zip(loaded.rows, json.loads(gzip.decompress(Path(path).read_bytes())), strict=True):
        assert [m["content"] for m in located.data["prompt"]] == [m["value"] for m in raw["conversations"]]
        assert located.data["chosen"] == [{"role": "assistant", "content": raw["chosen"]["value"]}]
        assert located.data["rejected"] == [{"role": "assistant", "content": raw["rejected"]["value"]}]


def test_the_real_labels_are_kept() -> None:
    """Read as demonstrations, 150 answers marked as bad would be trained on."""
    path = real("llamafactory/kto_en_demo.json.gz")
    loaded = load_one(path)
    assert (loaded.sources[0]["format"], loaded.sources[0]["kind"]) == ("unpaired", "unpaired")
    for located, raw in zip(loaded.rows, json.loads(gzip.decompress(Path(path).read_bytes())), strict=True):
        assert located.data["label"] is raw["label"]
        assert located.data["prompt"] == [{"role": m["role"], "content": m["content"]} for m in raw["messages"][:-1]]
    assert Counter(r.data["label"] for r in loaded.rows) == {True: 150, False: 150}


@pytest.mark.parametrize(
    ("label", "read"), [(True, True), (0, False), (1.0, True), ("true", True), ("False", False), ("0", False)]
)
def test_labels(label: Any, read: bool) -> None:
    assert row("unpaired", prompt="p", completion="c", label=label) == {"prompt": "p", "completion": "c", "label": read}
    assert row("unpaired", {"label": "good"}, messages=[USER, GOOD], good=label)["label"] is read


@pytest.mark.parametrize("label", [2, "maybe", None, [], 0.5, "", float("nan")])
def test_what_is_no_label(label: Any) -> None:
    assert refused("unpaired", prompt="p", completion="c", label=label)[0] == "label"


def test_a_label_that_may_be_a_class_has_to_be_named(tmp_path: Path) -> None:
    def format_of(*labels: Any) -> str:
        rows = [{"prompt": "p", "completion": "c", "label": label} for label in labels]
        return load_one(lines(tmp_path / "r.jsonl", rows)).sources[0]["format"]

    assert format_of(True, False) == format_of("true") == format_of(0, "maybe", True) == "unpaired"
    assert format_of(0, 1, 2) == format_of("ham") == "demonstration", "classes"
    with pytest.raises(DataError, match="can be read in 2 ways; say format: demonstration or format: unpaired"):
        format_of(0, 1)


def message(name: str, role: str, replies: list | None = None, **more: Any) -> dict[str, Any]:
    return {"message_id": name, "text": name.upper(), "role": role, "replies": replies or [], **more}


def tree(prompt: dict[str, Any]) -> dict[str, Any]:
    return {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": prompt}


def test_a_tree_becomes_a_ranking_for_each_answered_message(tmp_path: Path) -> None:
    follow_up = message("q2", "prompter", [message("c", "assistant", rank=1), message("d", "assistant", rank=0)])
    replies = [
        message("a", "assistant", [follow_up], rank=1),
        message("b", "assistant", rank=2),
        message("e", "assistant", rank=0),
    ]
    loaded = load_one(lines(tmp_path / "r.jsonl", [tree(message("q", "prompter", replies))]))
    first, second = (r.data for r in loaded.rows)
    assert (loaded.sources[0]["format"], {r.group for r in loaded.rows}) == ("oasst", {"t"})
    assert first["prompt"] == [{"role": "user", "content": "Q"}]
    assert [c[0]["content"] for c in first["completions"]] == ["A", "B", "E"] and first["ranking"] == [2, 0, 1]
    assert [m["content"] for m in second["prompt"]] == ["Q", "A", "Q2"] and second["ranking"] == [1, 0]


def test_replies_that_are_deleted_or_without_a_rank_are_left_out_and_counted(tmp_path: Path) -> None:
    below = [message("q2", "prompter", [message("x", "assistant", rank=0)])]
    replies = [
        message("a", "assistant", rank=1),
        message("b", "assistant", below, rank=0, deleted=True),
        message("c", "assistant", rank=None),
        message("d", "assistant", rank=2),
    ]
    alone = message("q", "prompter", [message("a", "assistant", rank=None)])
    same = message("q", "prompter", [message("a", "assistant", rank=1), message("b", "assistant", rank=1)])
    rows = [tree(message("q", "prompter", replies)), tree(message("q", "prompter")), tree(alone), tree(same)]
    loaded = load_one(lines(tmp_path / "r.jsonl", rows))
    assert [c[0]["content"] for c in loaded.rows[0].data["completions"]] == ["A", "D"] and len(loaded.rows) == 1
    assert loaded.rows[0].data["ranking"] == [0, 1]
    assert loaded.dropped == {
        "replies: a reply that was deleted": 1,
        "replies: a reply without a rank": 1,
        "prompt: was deleted, or comes after a message that was deleted or is missing": 1,
        "replies: no reply could be ranked": 1,
        "replies: needs two ranked replies at least": 1,
        "replies: two have the same rank": 1,
    }
    assert loaded.sources[0]["rows_in"] == 7


def test_a_tree_that_is_none(tmp_path: Path) -> None:
    rows = [tree(message("q", "prompter", [3])), tree({"role": "prompter", "text": "q", "replies": 3})]  # type: ignore[list-item]
    loaded = load_one(lines(tmp_path / "r.jsonl", rows), format="oasst")
    assert loaded.rows == [] and loaded.sources[0]["rows_in"] == sum(loaded.dropped.values()) == 3


@pytest.fixture
def flat() -> list[dict[str, Any]]:
    """The real trees a message a row, as the hub has them."""
    out = []
    for line in gzip.decompress(Path(real("oasst/en_100_tree.jsonl.gz")).read_bytes()).splitlines():
        tree = json.loads(line)
        left = [tree["prompt"]]
        while left:
            node = left.pop()
            left += reversed(node["replies"])
            kept = {k: node.get(k) for k in ("message_id", "parent_id", "text", "role", "lang", "rank", "deleted")}
            out.append(kept | {"message_tree_id": tree["message_tree_id"], "tree_state": "ready_for_export"})
    return out


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_trees_a_message_a_row_are_the_same_rankings(tmp_path: Path, flat: list[dict[str, Any]], suffix: str) -> None:
    path = tmp_path / f"r.{suffix}"
    if suffix == "jsonl":
        lines(path, flat)
    else:
        pq.write_table(pa.Table.from_pylist(flat), path)
    whole, loaded = load_one(real("oasst/en_100_tree.jsonl.gz")), load_one(path)
    assert [(r.data, r.group) for r in loaded.rows] == [(r.data, r.group) for r in whole.rows]
    assert loaded.dropped == whole.dropped and loaded.sources[0]["rows_in"] == whole.sources[0]["rows_in"]
    for located in loaded.rows:
        assert flat[located.row - 1]["text"] == located.data["prompt"][-1]["content"], "each has its message's row"
    few = load_one(path, max_rows=7)
    assert [r.data for r in few.rows] == [r.data for r in whole.rows][: len(few.rows)]
    assert few.sources[0]["rows_in"] == len(few.rows) + sum(few.dropped.values())


def test_messages_that_are_torn_from_their_tree_are_counted(tmp_path: Path, flat: list[dict[str, Any]]) -> None:
    first = [m for m in flat if m["message_tree_id"] == flat[0]["message_tree_id"]]
    last = [m for m in flat if m["message_tree_id"] == flat[-1]["message_tree_id"]]
    loaded = load_one(lines(tmp_path / "r.jsonl", [*first[1:], *last, last[-1], first[0]]), format="oasst")
    whole = load_one(lines(tmp_path / "w.jsonl", last), format="oasst")
    assert [r.data for r in loaded.rows] == [r.data for r in whole.rows]
    replies = sum(m["parent_id"] == first[0]["message_id"] for m in first)
    assert loaded.dropped["parent_id: the message that it replies to is not beside it"] == replies
    assert loaded.dropped["message_id: stands twice in the tree"] == 1
    assert loaded.sources[0]["rows_in"] == len(loaded.rows) + sum(loaded.dropped.values())


def test_the_real_trees() -> None:
    path = real("oasst/en_100_tree.jsonl.gz")
    loaded = load_one(path)
    expected = {}
    left = [(json.loads(line)["prompt"], ()) for line in gzip.decompress(Path(path).read_bytes()).splitlines()]
    while left:
        node, before = left.pop()
        here = (*before, node["text"])
        ranked = [r for r in node["replies"] if r.get("rank") is not None]
        if node["role"] == "prompter" and len(ranked) > 1:
            expected[here] = [r["text"] for r in sorted(ranked, key=lambda r: r["rank"])]
        left += [(reply, here) for reply in node["replies"]]
    got = {
        tuple(m["content"] for m in r.data["prompt"]): [
            r.data["completions"][i][0]["content"] for i in r.data["ranking"]
        ]
        for r in loaded.rows
    }
    assert got == expected and len(got) == len(loaded.rows) == 212
    assert loaded.sources[0]["rows_in"] == 212 + sum(loaded.dropped.values())
    assert len({r.group for r in loaded.rows}) <= 100
