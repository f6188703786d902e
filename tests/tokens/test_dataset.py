"""A stage's rows as segments: the report accounts for each, and nothing over-long goes by in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.load import Stream
from rlhf.errors import DataError
from rlhf.recipe.schema import row_kinds
from rlhf.recipe.sections import DataSection, SourceSection, TemplateSection
from rlhf.tokens.dataset import TokenizedRows, prompts, tokenize
from tests.data.support import lines, real
from tests.tiny import tiny_tokenizer

EOS = 1
PAIR = {"prompt": "the film", "chosen": " was good and the answer is yes", "rejected": " was"}


def run(path: str | Path, method: str = "dpo", which: Any = "train", **options: Any) -> TokenizedRows:
    section = DataSection(train=[SourceSection(path=str(path))], **options)
    return tokenize(section, tiny_tokenizer(), row_kinds(method), which, seed=0)


def test_the_report_accounts_for_every_row(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [PAIR, PAIR | {"chosen": ""}, PAIR | {"prompt": "Answer: <|im_end|>"}, 7])
    rows = run(path)
    assert [r.row for r in rows.rows] == [1, 3]
    assert [len(s.completion_ids) for s in rows.segments] == [2, 2]
    report = rows.report
    assert (report["rows_in"], report["rows_out"]) == (4, 2)
    assert report["dropped"] == report["quarantined"] == {"chosen: is empty": 1, "not an object": 1}
    assert report["special_tokens_in_text"] == 1
    assert report["sources"][0]["recognised"] is True
    assert report["tokens"] == sum(s.num_tokens for s in rows.segments)


def test_over_long_rows_stop_the_run_by_default(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [PAIR, PAIR | {"prompt": "a"}, PAIR | {"prompt": "1 2 3 " * 50}])
    whole = run(path)
    length = len(whole.segments[0].prompt_ids) + len(whole.segments[0].completion_ids[0])
    assert len(run(path, max_length=10_000).segments) == 3
    assert run(lines(tmp_path / "one.jsonl", [PAIR]), max_length=length).report["over_length"]["rows"] == 0
    with pytest.raises(DataError) as error:
        run(path, max_length=length - 1)
    assert (error.value.file, error.value.row) == (path, 1)
    assert f"{length} tokens, over max_length {length - 1}; 2 of 3 rows" in str(error.value)


def test_drop_counts(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [PAIR, PAIR | {"prompt": "1 2 3 " * 50}])
    rows = run(path, max_length=50, on_overflow="drop")
    assert [r.row for r in rows.rows] == [1]
    assert rows.report["dropped"] == {"over max_length": 1}
    assert rows.report["over_length"] == {"policy": "drop", "rows": 1, "truncated": 0, "dropped": 1}


def test_truncate_cuts_the_completions_end_and_never_the_prompt(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "r.jsonl", [PAIR, PAIR | {"prompt": "1 2 3 " * 50}, PAIR | {"rejected": PAIR["chosen"] + "!"}]
    )
    whole = run(path).segments[0]
    limit = len(whole.prompt_ids) + len(whole.completion_ids[1]) + 1
    rows = run(path, max_length=limit, on_overflow="truncate")
    (cut,) = rows.segments
    assert list(cut.prompt_ids) == list(whole.prompt_ids)
    assert list(cut.completion_ids[0]) == list(whole.completion_ids[0][: limit - len(whole.prompt_ids)])
    assert cut.completion_ids[0][-1] != EOS, "a completion that was cut has not ended"
    assert list(cut.completion_ids[1]) == list(whole.completion_ids[1])
    assert list(cut.grades) == [1, 0]
    assert rows.report["truncated"] == 1
    assert rows.report["dropped"] == {
        "prompt leaves no room under max_length": 1,
        "completions equal once truncated": 1,
    }


_words = st.lists(st.sampled_from(["the", " film", "<|im_end|>", "\n", "좋은", "1 2 3"]), max_size=6).map("".join)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries({"prompt": _words, "chosen": _words, "rejected": _words}), min_size=1, max_size=6
    ),
    max_length=st.integers(1, 40),
    policy=st.sampled_from(["error", "drop", "truncate"]),
    kind=st.sampled_from(["plain", "chat"]),
)
def test_the_balance_always_holds(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict], max_length: int, policy: str, kind: str
) -> None:
    path = lines(tmp_path_factory.mktemp("p") / "r.jsonl", [PAIR, *rows])
    try:
        found = run(path, max_length=max_length, on_overflow=policy, template=TemplateSection(kind=kind))  # type: ignore[arg-type]
    except DataError as error:
        assert "over max_length" in str(error) if policy == "error" else "no row is left" in str(error)
        return
    report = found.report
    assert report["rows_in"] == len(rows) + 1 == report["rows_out"] + sum(report["dropped"].values())
    assert report["rows_out"] == len(found.segments) == len(found.rows) > 0
    for segment in found.segments:
        assert len(segment.prompt_ids) + max(map(len, segment.completion_ids)) <= max_length
        assert segment.completion_ids[0] != segment.completion_ids[1]


def test_a_pairs_chosen_side_is_a_demonstration_and_the_report_says_so(tmp_path: Path) -> None:
    rows = run(lines(tmp_path / "r.jsonl", [PAIR]), "sft")
    assert rows.report["converted"] == "preference -> demonstration (chosen)"
    (segment,) = rows.segments
    assert tiny_tokenizer().decode(segment.completion_ids[0]) == PAIR["chosen"] + "<|im_end|>"
    assert list(segment.grades) == []


@pytest.mark.parametrize(
    ("method", "row"),
    [
        ("sft", {"prompt": "p", "completions": ["a", "b"], "ranking": [0, 1]}),
        ("dpo", {"prompt": "p", "completion": "c"}),
        ("reward", {"prompt": "p"}),
    ],
)
def test_rows_of_another_kind_are_refused(tmp_path: Path, method: str, row: dict) -> None:
    with pytest.raises(DataError, match=r"r\.jsonl:1: this is a (ranking|demonstration|prompt) row"):
        run(lines(tmp_path / "r.jsonl", [row]), method)


def test_the_reward_stage_takes_pairs_and_rankings_together(tmp_path: Path) -> None:
    a = lines(tmp_path / "a.jsonl", [PAIR])
    b = lines(tmp_path / "b.jsonl", [{"prompt": "p", "completions": ["a", "b", "c"], "scores": [1, 2, 2]}])
    section = DataSection(train=[SourceSection(path=a), SourceSection(path=b)])
    rows = tokenize(section, tiny_tokenizer(), row_kinds("reward"), seed=0)
    assert [list(s.grades) for s in rows.segments] == [[1, 0], [1, 2, 2]]
    assert [s["rows_out"] for s in rows.report["sources"]] == [1, 1]


def test_rows_that_the_template_refuses(tmp_path: Path) -> None:
    chat = {"prompt": [{"role": "user", "content": "hi"}], "chosen": "yes", "rejected": "no"}
    rows = run(lines(tmp_path / "a.jsonl", [PAIR, chat]))
    assert rows.report["dropped"] == {"a list of messages needs template.kind": 1}
    with pytest.raises(DataError, match=r"b\.jsonl:1: prompt: a list of messages"):
        run(lines(tmp_path / "b.jsonl", [chat]), template=TemplateSection(kind="plain"))
    assert run(lines(tmp_path / "b.jsonl", [chat])).report["template"] == "chat"


def test_no_eval_sources_no_rows(tmp_path: Path) -> None:
    rows = run(lines(tmp_path / "r.jsonl", [PAIR]), which="eval")
    assert (len(rows.segments), len(rows.rows), rows.report["rows_in"]) == (0, 0, 0)


def find_prompts(*paths: str, **options: Any) -> Any:
    return prompts([SourceSection(path=p) for p in paths], tiny_tokenizer(), TemplateSection(), seed=0, **options)


def test_prompts_of_any_kind_each_once(tmp_path: Path) -> None:
    a = lines(tmp_path / "a.jsonl", [PAIR, PAIR, {"prompt": "", "chosen": "a", "rejected": "b"}])
    b = lines(tmp_path / "b.jsonl", [{"prompt": "the film"}, {"prompt": "hello"}])
    found = find_prompts(a, b)
    assert [prompt.text for prompt in found] == ["the film", "hello"]
    assert [tiny_tokenizer().decode(prompt.ids) for prompt in found] == ["the film", "hello"]
    assert found.report["dropped"] == {"prompt: is empty": 1, "repeated prompt": 2}
    assert (found.report["rows_in"], found.report["rows_out"]) == (5, 2)
    assert list(find_prompts()) == []


def test_over_long_prompts(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"prompt": "hello"}, {"prompt": "1 2 3 " * 50}])
    with pytest.raises(DataError, match=r"r\.jsonl:2: \d+ tokens, over max_length 10; 1 of 2"):
        find_prompts(path, max_length=10)
    found = find_prompts(path, max_length=10, on_overflow="drop")
    assert (len(found), found.report["dropped"]) == (1, {"over max_length": 1})


def test_ten_thousand_real_rows() -> None:
    """More rows than one block holds: order and places stay."""
    path = real("songys_chatbot/ChatbotData.csv")
    source = SourceSection(path=path, format="demonstration", columns={"prompt": "Q", "completion": "A"})
    rows = tokenize(DataSection(train=[source]), tiny_tokenizer(), row_kinds("sft"), seed=0)
    assert [row.row for row in rows.rows] == list(range(1, 11_824))
    loaded = list(Stream([source]))
    for i in (0, 8191, 8192, 11_822):
        assert (
            tiny_tokenizer().decode(rows.segments[i].completion_ids[0]) == loaded[i].data["completion"] + "<|im_end|>"
        )


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_real_pairs(kind: Any) -> None:
    path = real("hh_rlhf/harmless-base_test.jsonl.gz")
    section = DataSection(
        train=[SourceSection(path=path, max_rows=200, format="hh_turns" if kind == "chat" else None)],
        template=TemplateSection(kind=kind),
        on_overflow="drop",
    )
    rows = tokenize(section, tiny_tokenizer(), row_kinds("dpo"), seed=0)
    assert rows.report["rows_in"] == 200
    data = {row.row: row.data for row in Stream(section.train)}
    for segment, row in zip(rows.segments, rows.rows, strict=True):
        for name, ids in zip(("chosen", "rejected"), segment.completion_ids, strict=True):
            text = data[row.row][name]
            answer = text if isinstance(text, str) else text[-1]["content"]
            assert tiny_tokenizer().decode(ids) == answer + "<|im_end|>"
