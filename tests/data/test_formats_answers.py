"""Questions and instructions: SQuAD and KorQuAD, Alpaca's templates, UltraFeedback, annotators' votes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.load import Stream
from rlhf.errors import DataError, RecipeError
from rlhf.recipe.sections import SourceSection
from tests.data.support import lines, load_one, real, refused, row

QAS = [
    {
        "id": "1",
        "question": "Who?",
        "answers": [{"text": "Ada", "answer_start": 0}, {"text": "Lovelace", "answer_start": 4}],
    },
    {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
]
ARTICLE = {"title": "T", "paragraphs": [{"context": "Ada Lovelace wrote it.", "qas": QAS}]}


@pytest.mark.parametrize("form", ["pretty", "one line", "lines"])
def test_squad(tmp_path: Path, form: str) -> None:
    path = tmp_path / "q.json"
    whole = {"version": "1", "data": [ARTICLE, ARTICLE]}
    path.write_text(
        {"pretty": json.dumps(whole, indent=1), "one line": json.dumps(whole)}.get(form)
        or f"{json.dumps(ARTICLE)}\n" * 2
    )
    loaded = load_one(path)
    assert [r.data for r in loaded.rows] == [{"prompt": "Ada Lovelace wrote it.\n\nWho?", "completion": "Ada"}] * 2
    assert {r.group for r in loaded.rows} == {"T"} and loaded.sources[0]["format"] == "squad"
    assert [r.row for r in loaded.rows] == ([1, 2] if form == "lines" else [1, 3])
    assert loaded.dropped == {"answers: is empty": 2} and loaded.sources[0]["rows_in"] == 4
    without = load_one(path, template="Q: {question} ({title})")
    assert without.rows[0].data["prompt"] == "Q: Who? (T)"


def test_questions_as_datasets_has_them() -> None:
    data = {"id": "1", "title": "T", "question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}}
    assert row("squad", **data) == {"prompt": "Who?", "completion": "Ada"}
    assert row("squad", context="C {question}", **data)["prompt"] == "C {question}\n\nWho?", (
        "braces of a text are its own"
    )
    assert refused("squad", question="Who?", answers={"text": []}) == (
        "answers",
        "is empty: the question has no answer",
    )
    assert refused("squad", question="Who?", answers=[{"text": " "}])[0] == "answers"
    with pytest.raises(DataError, match="context: is missing"):
        row("squad", None, "{context} {question}", **data)


@pytest.mark.parametrize("indent", [None, 1])
def test_questions_as_one_object(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"Who?": "Ada", "Where?": "London", "Why?": ""}, indent=indent))
    loaded = load_one(path, format="squad")
    assert [r.data for r in loaded.rows] == [
        {"prompt": "Who?", "completion": "Ada"},
        {"prompt": "Where?", "completion": "London"},
    ]
    assert loaded.sources[0]["rows_in"] == 3
    if indent:
        with pytest.raises(DataError, match="format: squad"):
            load_one(path)


def test_pieces_that_are_no_questions_are_counted(tmp_path: Path) -> None:
    data = [ARTICLE, 3, {"title": "x"}, {"paragraphs": [{"context": "c"}, 4, {"qas": [5]}]}, {"paragraphs": []}]
    (tmp_path / "q.json").write_text(json.dumps({"data": data}))
    loaded = load_one(tmp_path / "q.json", format="squad")
    assert len(loaded.rows) == 1 and loaded.sources[0]["rows_in"] == 1 + sum(loaded.dropped.values()) == 7
    (tmp_path / "e.json").write_text(json.dumps({"data": [{"paragraphs": []}]}))
    assert load_one(tmp_path / "e.json").dropped == {"holds no question and no message": 1}


def test_the_real_korquad() -> None:
    path = real("korquad1/KorQuAD_v1.0_dev.json")
    loaded = load_one(path, template="{question}")
    whole = json.loads(Path(path).read_text())["data"]
    pairs = [
        (q["question"], q["answers"][0]["text"], a["title"]) for a in whole for p in a["paragraphs"] for q in p["qas"]
    ]
    assert [(r.data["prompt"], r.data["completion"], r.group) for r in loaded.rows] == pairs
    assert len(pairs) == 5774 and loaded.dropped == {}
    assert all(r.data["completion"] in r.data["prompt"] for r in load_one(path).rows), (
        "with its context, a prompt holds the answer"
    )


def test_alpaca_in_korean_and_as_one_likes() -> None:
    korean = row("alpaca", None, "kochatgpt", instruction="인사해", input="", output="안녕")
    assert korean["prompt"].endswith("### Instruction(명령어):\n인사해\n\n### Response(응답):")
    with_input = row("alpaca", None, "kochatgpt", instruction="옮겨", input="hi {instruction}", output="안녕")["prompt"]
    assert "추가적 맥락" in with_input and with_input.endswith(
        "### Input(입력):\nhi {instruction}\n\n### Response(응답):"
    )
    own = row("alpaca", None, "{instruction}|{input}|", instruction="a", input="b", output="c")
    assert own == {"prompt": "a|b|", "completion": "c"}
    with pytest.raises(DataError, match=r"no \{input\} for it"):
        row("alpaca", None, "{instruction}", instruction="a", input="b", output="c")


@pytest.mark.parametrize(
    ("format", "template", "message"),
    [
        (
            "alpaca",
            "alpca",
            r"holds no column; it may hold {instruction}, {input} \(or one of the names alpaca, kochatgpt\)",
        ),
        ("alpaca", "{promt}", r"there is no {promt} in this format; it may hold {instruction}, {input}"),
        ("alpaca", "alpaca_ko", "one of the names alpaca, kochatgpt"),
        ("demonstration", "{prompt}", "this format takes none"),
    ],
)
def test_a_template_that_cannot_be_filled_is_an_error_of_the_recipe(
    tmp_path: Path, format: str, template: str, message: str
) -> None:
    path = lines(tmp_path / "r.jsonl", [{"instruction": "i", "output": "o", "prompt": "p", "completion": "c"}])
    with pytest.raises(RecipeError, match=message):
        load_one(path, format=format, template=template)


def test_a_template_of_ones_own_has_two_shapes(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "input": "b", "output": "c"}, {"instruction": "d", "input": "", "output": "e"}]
    path = lines(tmp_path / "r.jsonl", rows)
    with_input, without = "ask: {instruction}\ninput: {input}\n", "ask: {instruction}\n"
    loaded = load_one(path, template=with_input, template_no_input=without)
    assert [r.data["prompt"] for r in loaded.rows] == ["ask: a\ninput: b\n", "ask: d\n"]
    loaded = load_one(path, template=with_input)  # no prompt with an empty heading
    assert [r.data["prompt"] for r in loaded.rows] == ["ask: a\ninput: b\n"]
    assert loaded.dropped == {"input: is empty, and the template has an {input}": 1}
    assert "template_no_input" in loaded.quarantine.entries[0]["reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "{instruction}{input}", "template_no_input": "{input}"}, "take {input} out of it"),
        ({"template_no_input": "{instruction}"}, "needs a template of your own"),
        ({"template": "kochatgpt", "template_no_input": "{instruction}"}, "needs a template of your own"),
        ({"template": "{instruction}", "template_no_input": "none"}, "holds no column"),
    ],
)
def test_a_second_shape_that_does_not_fit_the_first(tmp_path: Path, options: dict, message: str) -> None:
    path = lines(tmp_path / "r.jsonl", [{"instruction": "i", "output": "o"}])
    with pytest.raises(RecipeError, match=message):
        load_one(path, **options)


def test_the_method_says_whether_the_answer_or_the_pair_is_meant(tmp_path: Path) -> None:
    data = {"instruction": "i", "output": "o", "chosen": "a", "rejected": "b"}
    path = lines(tmp_path / "r.jsonl", [data])
    source = [SourceSection(path=path)]
    (row,) = list(Stream(source, kinds={"preference"}))
    assert (row.data["chosen"], row.data["rejected"]) == ("a", "b")
    for kinds in (None, {"demonstration"}):
        with pytest.raises(DataError, match=r"both an answer .* and a pair .*format: alpaca"):
            list(Stream(source, kinds=kinds))


def test_alpaca_with_two_answers(tmp_path: Path) -> None:
    data = {"instruction": "i", "input": "x", "chosen": "a", "rejected": "b"}
    loaded = load_one(lines(tmp_path / "r.jsonl", [data]))
    assert loaded.sources[0]["format"] == "alpaca" and loaded.rows[0].data["prompt"].endswith(
        "### Input:\nx\n\n### Response:\n"
    )
    loaded = load_one(real("rasbt/instruction-data-with-preference.json"), format="alpaca")
    assert (len(loaded.rows), loaded.dropped) == (1094, {"rejected: is equal to chosen": 6})


def answer(text: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "response": text, **more}


def rated(*ratings: str) -> dict[str, Any]:
    return {"annotations": {f"aspect{i}": {"Rating": r, "Rationale": "why"} for i, r in enumerate(ratings)}}


def test_ultrafeedback() -> None:
    both = [
        answer("a", **{"overall_score": 8.5, "fine-grained_score": 3.0}),
        answer("b", **{"overall_score": 7, "fine-grained_score": 4.5}),
    ]
    assert row("ultrafeedback", instruction="q", completions=both) == {
        "prompt": "q",
        "completions": ["a", "b"],
        "scores": [8.5, 7.0],
    }
    assert row("ultrafeedback", {"score": "fine-grained_score"}, instruction="q", completions=both)["scores"] == [
        3.0,
        4.5,
    ]
    fine = [
        answer("a", **{"fine-grained_score": 3.0, "overall_score": None}),
        answer("b", **{"fine-grained_score": 4.5}),
    ]
    assert row("ultrafeedback", instruction="q", completions=fine)["scores"] == [3.0, 4.5]
    ratings = [answer("a", **rated("5", "N/A", "4")), answer("b", **rated("1", "2", "3"))]
    assert row("ultrafeedback", instruction="q", completions=ratings)["scores"] == [4.5, 2.0]
    assert row("ultrafeedback", {"score": "annotations"}, instruction="q", completions=ratings)["scores"] == [4.5, 2.0]
    for bad in ([answer("a", **rated("5"))], [answer("a"), answer("b")], [answer("a", **rated("N/A")), answer("b", **rated("1"))],
                [answer("a", **rated("x")), answer("b", **rated("1"))], [answer("", **rated("5")), answer("b", **rated("1"))], [3, 4]):  # fmt: skip
        assert refused("ultrafeedback", instruction="q", completions=bad)[0] == "completions"
    assert refused("ultrafeedback", {"score": "none"}, instruction="q", completions=both)[1] == "has no none in each"


def test_ultrafeedback_is_recognised(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"source": "s", "instruction": "q", "models": ["m"], "completions": [answer("a", overall_score=1), answer("b", overall_score=2)]}])  # fmt: skip
    assert load_one(path).sources[0]["format"] == "ultrafeedback"
    assert load_one(path, format="ultrafeedback", columns={"score": "overall_score"}).rows[0].data["scores"] == [
        1.0,
        2.0,
    ]


VOTED = {"instruction": "i", "input": "", "response1": "a", "response2": "b"}


@pytest.mark.parametrize(
    ("votes", "chosen", "margin"), [((1, 1, 1), "a", 1.0), ((2, 2, 1), "b", 1 / 3), ((0, 2, 2), "b", 2 / 3), (("1", "0", "1"), "a", 2 / 3), ((1,), "a", 1.0)]
)  # fmt: skip
def test_votes(votes: tuple, chosen: str, margin: float) -> None:
    made = row("annotators", **VOTED, **{f"annotator{i}": v for i, v in enumerate(votes, 1)})
    assert (made["chosen"], made["margin"]) == (chosen, pytest.approx(margin))
    assert made["rejected"] == ({"a", "b"} - {chosen}).pop() and made["prompt"].endswith(
        "### Instruction:\ni\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("votes", "reason"),
    [
        ((0, 0, 1), "the annotators call it a tie: {0: 2, 1: 1}"),
        ((0, 1, 2), "no majority among the annotators: {0: 1, 1: 1, 2: 1}"),
        ((1, 2), "no majority among the annotators: {1: 1, 2: 1}"),
        ((1, 1, 3), "must be 1, 2 or 0 for a tie: 3"),
        ((1, 1, None), "is null"),
        ((1, 1, True), "must be 1, 2 or 0 for a tie: True"),
    ],
)
def test_votes_that_decide_nothing(votes: tuple, reason: str) -> None:
    assert refused("annotators", **VOTED, **{f"annotator{i}": v for i, v in enumerate(votes, 1)})[1] == reason


def test_votes_in_columns_of_other_names() -> None:
    columns = {"annotator1": "anna", "annotator2": "ben", "response1": "left", "response2": "right"}
    data = {"prompt": "p", "left": "a", "right": "b", "anna": 2, "ben": 2}
    assert row("annotators", columns, **data) == {"prompt": "p", "chosen": "b", "rejected": "a", "margin": 1.0}


def test_the_real_votes() -> None:
    path = real("pandalm/testset-v1.json")
    loaded = load_one(path)
    raw = json.loads(Path(path).read_text())
    by_place = {r.row: r.data for r in loaded.rows}
    left_out: Counter[str] = Counter()
    for place, item in enumerate(raw, 1):
        texts = [item["response1"], item["response2"]]
        if not all(isinstance(t, str) and t.strip() for t in (*texts, item["instruction"])):
            left_out["text"] += 1
            assert place not in by_place
            continue
        votes = [item[f"annotator{i}"] for i in (1, 2, 3)]
        winner = next((v for v in (0, 1, 2) if votes.count(v) >= 2), None)
        if winner in (0, None):
            left_out["tie"] += 1
            assert place not in by_place
            continue
        made = by_place.pop(place)
        assert (made["chosen"], made["rejected"]) == (texts[winner - 1], texts[2 - winner])
        assert made["margin"] == pytest.approx((votes.count(winner) - votes.count(3 - winner)) / 3)
    assert by_place == {} and len(loaded.rows) == 835 and left_out == {"text": 61, "tie": 103}
    assert loaded.dropped["the annotators call it a tie"] == 103
