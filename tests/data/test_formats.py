"""Rows to canonical rows: every published format, on the real files where they are at hand, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.load import Stream
from rlhf.data.recognise_format import choose
from rlhf.data.rows import Located, grades_of, kind_of
from rlhf.errors import DataError
from rlhf.recipe.sections import SourceSection
from tests.data.support import lines, load_one, real, refused, row

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Yes"), ("assistant", "No")))


def test_stack_exchange_paired() -> None:
    assert row("stack_exchange_paired", question="q", response_j="good", response_k="bad", qid=3) == {
        "prompt": "Question: q\n\nAnswer: ",
        "chosen": "good",
        "rejected": "bad",
    }


def test_hh() -> None:
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert row("hh", chosen=f"{start} d", rejected=f"{start} e") == {"prompt": start, "chosen": " d", "rejected": " e"}
    assert (
        refused("hh", chosen=f"{start} d", rejected="\n\nHuman: z\n\nAssistant: e")[1]
        == "does not share chosen's prompt"
    )
    assert refused("hh", chosen=f"{start} ", rejected=f"{start} e")[0] == "chosen"
    assert refused("hh", chosen="no turn", rejected=f"{start} e")[0] == "chosen"
    assert refused("hh", chosen=f"{start} d", rejected=f"{start} d") == ("rejected", "is equal to chosen")


def test_alpaca() -> None:
    with_input = row("alpaca", instruction="Use {input}.", input="x", output="y")
    assert with_input["prompt"].endswith("### Instruction:\nUse {input}.\n\n### Input:\nx\n\n### Response:\n")
    assert "further context" in with_input["prompt"]
    for blank in ({}, {"input": ""}, {"input": None}, {"input": " "}):
        assert "### Input" not in row("alpaca", instruction="i", output="y", **blank)["prompt"]
    assert refused("alpaca", instruction="i", input=3, output="y")[0] == "input"


def test_preference() -> None:
    assert row("preference", prompt="p", chosen="a", rejected="b", extra=1) == {
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
    }
    assert row("preference", prompt="p", chosen="a", rejected="b", margin=2)["margin"] == 2.0
    assert "margin" not in row("preference", prompt="p", chosen="a", rejected="b", margin=None)
    assert refused("preference", prompt="p", chosen="a", rejected="b", margin=-1)[0] == "margin"
    assert refused("preference", prompt="p", chosen="a", rejected="b", margin="big")[0] == "margin"
    assert refused("preference", prompt="p", chosen="a", rejected="a") == ("rejected", "is equal to chosen")
    assert refused("preference", {"chosen": "better"}, prompt="p", better="", rejected="a") == ("better", "is empty")


def test_conversations() -> None:
    explicit = row("preference", prompt=[USER], chosen=[GOOD], rejected=[BAD])
    implicit = row("preference", chosen=[USER, GOOD], rejected=[USER, BAD])
    assert explicit == implicit == {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
    share_gpt = {
        "prompt": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Yes"},
        "rejected": "No",
    }
    assert row("preference", **share_gpt) == explicit
    assert row("demonstration", messages=[USER, GOOD]) == {"prompt": [USER], "completion": [GOOD]}
    assert row("ranking", prompt=[USER], completions=[[GOOD], [BAD]], ranking=[1, 0])["completions"] == [[GOOD], [BAD]]
    assert row("prompt", prompt=[USER | {"weight": None}]) == {"prompt": [USER]}


@pytest.mark.parametrize(
    "messages",
    [[], [GOOD], [USER, GOOD, USER], ["Hi"], [USER, {"role": "elf", "content": "x"}], [USER, GOOD | {"content": " "}]],
)
def test_what_is_no_dialogue(messages: list) -> None:
    assert refused("demonstration", messages=messages)[0] == "messages"


def test_what_is_no_completion() -> None:
    assert refused("preference", prompt="p", chosen=[GOOD], rejected=[BAD])[0] == "chosen"
    assert "tool call" in refused("preference", prompt=[USER], chosen=[GOOD | {"tool_calls": [1]}], rejected=[BAD])[1]


def test_ranking() -> None:
    assert row("ranking", prompt="p", completions=["a", "b"], scores=[1, 2.5]) == {
        "prompt": "p",
        "completions": ["a", "b"],
        "scores": [1.0, 2.5],
    }
    assert row("ranking", prompt="p", completions='["a", "b"]', ranking="[1, 0]")["ranking"] == [1, 0], "CSV cells"
    both = row("ranking", prompt="p", completions=["a", "b"], scores=[1, 2], ranking=[1, 0])
    assert set(both) == {"prompt", "completions", "scores"}
    assert (
        refused("ranking", prompt="p", completions=["a", "b"], scores=[1, 2], ranking=[0, 1])[1] == "contradicts scores"
    )
    for scores in ([1], [1, float("nan")], [1, "x"], [1, None], [1, True]):
        assert refused("ranking", prompt="p", completions=["a", "b"], scores=scores)[0] == "scores"
    assert refused("ranking", prompt="p", completions=["a"], scores=[1])[0] == "completions"
    assert refused("ranking", prompt="p", completions=["a", ""], scores=[1, 2]) == ("completions", "is empty")


def test_ranks_are_never_taken_for_an_order() -> None:
    """[2, 0, 1] as ranks puts completion 1 first, as an order completion 2."""
    data = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 0, 1]}
    assert "a ranking is an order" in refused("ranking", **data)[1]
    assert "a ranking is an order" in refused("ranking", {"ranking": "ranks"}, **data)[1]
    with pytest.raises(DataError, match="a ranking is an order"):
        choose([Located("f", 1, data)], SourceSection(path="f"))


@pytest.mark.parametrize("value", [None, 3, "", " \n", ["x"], {"a": 1}])
def test_what_is_no_prompt(value: Any) -> None:
    assert refused("prompt", prompt=value)[0] == "prompt"
    assert refused("demonstration", {"prompt": "q"}, q=value, completion="c")[0] == "q"


def test_mapped_columns_replace_their_names() -> None:
    assert row("demonstration", {"prompt": "completion", "completion": "prompt"}, prompt="a", completion="b") == {
        "prompt": "b",
        "completion": "a",
    }


RECOGNISED = {
    "kochatgpt_rm": {"prompt": "p", "completion_0": "a", "completion_1": "b", "ranking": [0, 1]},
    "stack_exchange_paired": {"question": "q", "response_j": "a", "response_k": "b"},
    "hh": {"chosen": "\n\nHuman: x\n\nAssistant: a", "rejected": "\n\nHuman: x\n\nAssistant: b"},
    "preference": {"prompt": "p", "chosen": "a", "rejected": "b"},
    "ranking": {"prompt": "p", "completions": ["a", "b"], "ranking": [1, 0]},
    "scored": {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]},
    "demonstration": {"prompt": "p", "completion": "c", "tokens": 1},
    "unpaired": {"prompt": "p", "completion": "c", "label": True},
    "messages": {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
    "alpaca": {"instruction": "i", "input": "", "output": "o"},
    "prompt": {"prompt": "p", "id": 3},
}


@pytest.mark.parametrize("format", RECOGNISED)
def test_formats_are_recognised_and_said(tmp_path: Path, format: str) -> None:
    loaded = load_one(lines(tmp_path / "r.jsonl", [{"odd": 1}, RECOGNISED[format]]))
    (report,) = loaded.sources
    assert (report["format"], report["recognised"], report["kind"]) == (format, True, kind_of(loaded.rows[0].data))
    assert (report["rows_in"], report["rows_out"]) == (2, 1)
    assert report["dropped"] and sum(report["dropped"].values()) == 1


def test_what_fits_nothing_gets_a_line_to_paste(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(DataError) as error:
        load_one(path)
    assert "found: question, answer" in str(error.value)
    assert "format: demonstration, columns: {prompt: question, completion: answer}" in str(error.value)
    pasted = load_one(path, format="demonstration", columns={"prompt": "question", "completion": "answer"})
    assert [r.data for r in pasted.rows] == [{"prompt": "q", "completion": "a"}]


BINARIZED = {
    "prompt": "q",
    "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
    "score_chosen": 8.0,
    "score_rejected": 3.0,
}


@pytest.mark.parametrize(
    ("kinds", "format"),
    [
        ({"preference"}, "preference"),
        ({"preference", "ranking"}, "preference"),
        ({"demonstration"}, "messages"),
        ({"prompt"}, "messages"),
    ],
)
def test_the_method_decides_between_two_readings(tmp_path: Path, kinds: set[str], format: str) -> None:
    """The columns of UltraFeedback, binarized. For PPO either reading is good: both give the same prompt."""
    source = SourceSection(path=lines(tmp_path / "r.jsonl", [BINARIZED, BINARIZED]))
    stream = Stream([source], kinds=kinds)
    assert len(list(stream)) == 2 and stream.sources[0]["format"] == format
    with pytest.raises(DataError, match="can be read in 2 ways"):
        list(Stream([source]))


@pytest.mark.parametrize(
    ("kinds", "data", "line"),
    [
        (None, {"Q": "q", "A": "a"}, "format: demonstration, columns: {prompt: Q, completion: A}"),
        ({"demonstration"}, {"Q": "q", "A": "a"}, "format: demonstration, columns: {prompt: Q, completion: A}"),
        ({"preference"}, {"Q": "q", "good": "a", "bad": "b"}, "format: preference, columns: {prompt: <the column"),
        ({"preference"}, {"Q": "q", "better": "a", "worse": "b"}, "{prompt: Q, chosen: better, rejected: worse}"),
        ({"preference", "ranking"}, {"Q": "q", "answers": ["a", "b"]}, "columns: {prompt: Q, best_first: answers}"),
        (None, {"prompt": "q", "response": ["a", "b"]}, "format: ranking, columns: {prompt: prompt, best_first: response}"),
    ],
)  # fmt: skip
def test_what_is_offered_is_what_the_method_takes(tmp_path: Path, kinds: Any, data: dict, line: str) -> None:
    source = SourceSection(path=lines(tmp_path / "r.jsonl", [data]))
    with pytest.raises(DataError) as error:
        list(Stream([source], kinds=kinds))
    assert line in str(error.value)
    assert kinds in (None, {"demonstration"}) or "demonstration" not in str(error.value)


def test_a_line_to_paste_reads_answers_that_are_listed_best_first(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"prompt": "q", "response": ["best", "good", "bad"]}])
    (found,) = load_one(path, format="ranking", columns={"prompt": "prompt", "best_first": "response"}).rows
    assert found.data == {"prompt": "q", "completions": ["best", "good", "bad"], "ranking": [0, 1, 2]}


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({"instruction": "i", "output": "o", "chosen": "a", "rejected": "b"}, {}, "format: alpaca"),
        ({"prompt": "p", "response": "r"}, {}, "completion: response"),
        ({"prompt": "p", "completions": ["a", "b"]}, {}, "no format fits"),
        ({"prompt": "p"}, {"format": "hh"}, "needs the columns chosen, rejected; found prompt"),
        ({"q": "p"}, {"columns": {"prompt": "question"}}, "no such column; found q"),
        ({"q": "p"}, {"columns": {"promt": "q"}}, "promt is no field of any format"),
    ],
)
def test_a_file_without_its_columns_is_refused_whole(tmp_path: Path, data: dict, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_one(lines(tmp_path / "r.jsonl", [data]), **options)


@given(st.lists(st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "margin"]), st.none() | st.text(max_size=3) | st.floats() | st.lists(st.text(max_size=2), max_size=2)), max_size=8))  # fmt: skip
def test_any_row_is_canonical_or_refused(rows: list[dict]) -> None:
    for data in rows:
        try:
            out = row("preference", **data)
        except DataError as error:
            assert error.reason and error.row == 1
        else:
            assert set(out) <= {"prompt", "chosen", "rejected", "margin"} and out["chosen"] != out["rejected"]


def test_nothing_usable_is_an_error_with_its_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable row: 2 x prompt: is empty"):
        load_one(lines(tmp_path / "r.jsonl", [{"prompt": ""}, {"prompt": " "}]), needs_rows=True)


@pytest.mark.parametrize(
    ("file", "options", "format", "rows_out", "dropped"),
    [
        ("kochatgpt/kochatgpt_2_RM.first3rows_recovered.json", {}, "kochatgpt_rm", 3, {}),
        ("kochatgpt/kochatgpt_3_PPO.jsonl", {}, "prompt", 11_997, {"prompt: is empty": 3}),
        ("ko_rankings/kochatgpt_2_RM.derived.json", {}, "kochatgpt_rm", 677, {}),
        ("ko_rankings/scored.jsonl", {}, "scored", 665, {"completions: is empty": 12}),
        (
            "hh_rlhf/harmless-base_test.jsonl.gz",
            {},
            "hh",
            2303,
            {"rejected: does not share chosen's prompt": 5, "chosen: is empty after the last assistant turn": 4},
        ),
        ("stackexchange/beer_pairs.jsonl.gz", {}, "stack_exchange_paired", 2173, {}),
        ("torchtune_assets/stack_exchange_paired_tiny.json", {}, "stack_exchange_paired", 25, {}),
        ("torchtune_assets/hh_rlhf_tiny.json", {}, "preference", 1, {}),
        ("llamafactory/alpaca_en_demo.json.gz", {}, "alpaca", 999, {}),
        ("llamafactory/dpo_en_demo.json.gz", {"prompt": "conversations"}, "preference", 300, {}),
        ("gsm8k/train.jsonl", {"prompt": "question", "completion": "answer"}, "demonstration", 7473, {}),
    ],
)
def test_real_files(file: str, options: dict, format: str, rows_out: int, dropped: dict) -> None:
    loaded = load_one(real(file), columns=options or None)
    (report,) = loaded.sources
    assert (report["format"], report["rows_out"], report["dropped"]) == (format, rows_out, dropped)


def test_the_real_alpaca_texts_are_what_its_authors_rendered() -> None:
    path = real("torchtune_assets/alpaca_tiny.json")
    for located, raw in zip(load_one(path).rows, json.loads(Path(path).read_text()), strict=True):
        assert located.data["prompt"] + located.data["completion"] == raw["text"]


def test_the_real_rankings_agree_with_the_scores_they_were_made_of() -> None:
    scored = {r.data["prompt"]: r.data for r in load_one(real("ko_rankings/scored.jsonl")).rows}
    cycles = 0
    for located in load_one(real("ko_rankings/kochatgpt_2_RM.derived.json")).rows:
        data, source = located.data, scored.get(located.data["prompt"])
        if data["ranking"] not in ([1, 2, 0], [2, 0, 1]) or source is None:
            continue
        score_of = dict(zip(source["completions"], source["scores"], strict=True))
        scores = [score_of[c] for c in data["completions"]]
        for values in (scores, grades_of(data)):
            assert sorted(range(3), key=lambda i, v=values: -v[i]) == data["ranking"]
        cycles += 1
    assert cycles > 50
