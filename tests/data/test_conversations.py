"""Conversations as data sets publish them: tools, parts, marks, tails of turns, transcripts; and the same after a build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import rlhf
from tests.data.support import lines, load_one, refused, row

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello!"), ("assistant", "No")))
MORE, LAST = {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Well."}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "2"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def test_an_openai_file_keeps_its_tools_calls_and_weights() -> None:
    found = row(
        "messages", messages=[USER, CALLING, RESULT, GOOD | {"weight": 0}, MORE, LAST | {"weight": 1}], tools=TOOLS
    )
    first, call, result, answer, _ = found["prompt"]
    assert json.loads(first["tools"]) == TOOLS
    assert json.loads(call["tool_calls"]) == [CALL | {"function": {"name": "add", "arguments": {"a": 1}}}]
    assert call["content"] == "" and result == RESULT
    assert answer["train"] is False
    assert found["completion"] == [LAST | {"train": True}]


def test_parts_of_text_are_joined_and_an_image_is_an_error() -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert row("messages", messages=[{"role": "user", "content": parts}, GOOD])["prompt"] == [USER]
    image = [*parts, {"type": "image_url", "image_url": {"url": "x"}}]
    assert refused("messages", messages=[{"role": "user", "content": image}, GOOD]) == (
        "messages",
        "holds content that is no text: message 1 has a part of type 'image_url'",
    )


def test_share_gpt_with_function_calls() -> None:
    turns = [
        ("human", "Hi"),
        ("function_call", '{"name": "add", "arguments": {"a": 1}}'),
        ("observation", "2"),
        ("gpt", "Hello!"),
    ]
    tools = json.dumps([{"name": "add", "parameters": {}}])
    found = row("sharegpt", conversations=[{"from": who, "value": text} for who, text in turns], tools=tools)
    assert [m["role"] for m in found["prompt"]] == ["user", "assistant", "tool"]
    assert json.loads(found["prompt"][1]["tool_calls"])[0]["function"] == {"name": "add", "arguments": {"a": 1}}
    assert json.loads(found["prompt"][0]["tools"]) == TOOLS


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"weight": 0.5}, "neither 0 nor 1"),
        ({"weight": 1, "train": False}, "do not agree"),
        ({"function_call": {"name": "f"}}, "write it as tool_calls"),
        ({"tool_calls": [{"function": {}}]}, "without a function's name"),
        ({"tool_calls": "{"}, "no JSON"),
    ],
)
def test_what_no_message_may_hold(more: dict[str, Any], reason: str) -> None:
    field, said = refused("messages", messages=[USER, GOOD | more])
    assert field == "messages" and reason in said


def test_tools_beside_a_prompt_of_text_are_refused() -> None:
    assert refused("demonstration", prompt="Hi", completion="Hello!", tools=TOOLS)[0] == "tools"


def test_completions_of_several_messages_start_and_end_with_an_assistant() -> None:
    pair = {"prompt": [USER], "chosen": [GOOD, MORE, LAST], "rejected": [BAD]}
    assert row("preference", **pair) == pair
    for wrong in ([MORE, LAST], [GOOD, MORE], []):
        assert (
            "start and end with an assistant" in refused("preference", prompt=[USER], chosen=wrong, rejected=[BAD])[1]
        )


def test_pairs_share_a_prefix_and_differ_in_a_tail() -> None:
    found = row("preference", chosen=[USER, GOOD, MORE, LAST], rejected=[USER, BAD, MORE, LAST])
    assert found == {"prompt": [USER], "chosen": [GOOD, MORE, LAST], "rejected": [BAD, MORE, LAST]}
    other = {"role": "user", "content": "Why?"}
    assert (
        "not the assistant's: message 3"
        in refused("preference", chosen=[USER, GOOD, MORE, LAST], rejected=[USER, GOOD, other, LAST])[1]
    )
    assert "no turn to compare" in refused("preference", chosen=[USER, GOOD, MORE, LAST], rejected=[USER, GOOD])[1]
    assert refused("preference", chosen=[USER, GOOD], rejected=[MORE, BAD])[1] == "does not share chosen's prompt"


def test_transcripts_become_turns_and_what_cannot_is_counted(tmp_path: Path) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: And?\n\nAssistant:"
    rows = [
        {"chosen": f"{start} Well.", "rejected": f"{start} No"},
        {"chosen": f"{start} Well.", "rejected": "\n\nHuman: Hi\n\nHuman: And?\n\nAssistant: No"},
        {"chosen": f"{start} ", "rejected": f"{start} No"},
        {"chosen": "Hi\n\nAssistant: No", "rejected": f"{start} No"},
    ]
    loaded = load_one(lines(tmp_path / "hh.jsonl", rows), format="hh_turns")
    assert [r.data for r in loaded.rows] == [{"prompt": [USER, GOOD, MORE], "chosen": [LAST], "rejected": [BAD]}]
    assert loaded.dropped == {
        "rejected: holds two turns in a row of one speaker": 1,
        "chosen: holds a turn without text": 1,
        "chosen: does not start with Human:": 1,
    }


def test_a_built_folder_keeps_all_of_a_conversation(tmp_path: Path) -> None:
    plain = {"messages": [USER, GOOD]}
    full = {"messages": [USER, CALLING, RESULT, GOOD | {"weight": 0}, MORE, LAST], "tools": TOOLS}
    for name, rows in (("plain", [plain]), ("full", [plain, full])):
        path = lines(tmp_path / f"{name}.jsonl", rows)
        rlhf.run({"method": "data", "output_dir": str(tmp_path / name), "sources": [{"path": path}]})
        again = load_one(tmp_path / name / "train")
        assert [r.data for r in again.rows] == [r.data for r in load_one(path).rows]
    message = pq.read_table(tmp_path / "plain/train").schema.field("prompt").type.value_type
    assert [message.field(i).name for i in range(message.num_fields)] == ["role", "content"]
    message = pq.read_table(tmp_path / "full/train").schema.field("prompt").type.value_type
    assert {message.field(i).name for i in range(message.num_fields)} == {
        "role", "content", "tool_calls", "tool_call_id", "train", "tools",
    }  # fmt: skip
