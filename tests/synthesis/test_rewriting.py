"""evolve and paraphrase: chains of rewrites, and prompts in other words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from rlhf.data.rows import Row
from rlhf.errors import RecipeError
from rlhf.recipe.synthesis import EvolveStep, ParaphraseStep
from rlhf.synthesis import evolve, paraphrase
from rlhf.synthesis.prompts import FOLDER, template
from tests.synthesis.support import FakeEngine, fence

ROWS: list[Row] = [{"prompt": f"q{i}", "completion": f"c{i}"} for i in range(40)]


def plus(prompt: str) -> str:
    return fence(prompt, "answer") + "+"


def test_each_evolution_rewrites_the_one_before() -> None:
    made, report = evolve(ROWS, FakeEngine(plus), evolutions=3)
    assert made[7] == {
        "prompt": "q7",
        "completions": ["c7", "c7+", "c7++", "c7+++"],
        "models": ["source", "engine", "engine", "engine"],
    }
    assert report["evolved"] == sum(report["methods"].values()) == 120
    assert len(report["methods"]) == 5
    made, _ = evolve(ROWS, FakeEngine(plus), evolutions=3, keep="last")
    assert made[7] == {"prompt": "q7", "completion": "c7+++"}
    rankings: list[Row] = [{"prompt": "q", "completions": ["a", "b"], "models": ["x", "y"], "scores": [1.0, 2.0]}]
    made, report = evolve(rankings, FakeEngine(plus), keep="last")
    assert made == [{"prompt": "q", "completions": ["a+", "b+"], "models": ["engine", "engine"]}]
    assert report["rows_whose_scores_were_left_out"] == 1


def test_a_chain_ends_where_nothing_new_comes() -> None:
    def stubborn(prompt: str) -> str:
        text = fence(prompt, "answer")
        return {"c1+": "", "c2+": f"  {text}\n", "c3+": "copy " + prompt}.get(text, text + "+")

    made, report = evolve(ROWS[:5], FakeEngine(stubborn), evolutions=3)
    assert [len(row["completions"]) for row in made] == [4, 2, 2, 2, 4]
    assert report["evolutions_without_result"] == {
        "empty": 1,
        "unchanged": 1,
        "repeats the fence of its prompt": 1,
    }
    assert report["engines"]["engine"]["requests"] == 2 * 3 + 3 * 2


def test_the_method_is_the_one_that_was_asked_for() -> None:
    seen: Counter[str] = Counter()

    def sees(prompt: str) -> str:
        seen["creative" if "more original" in prompt else "detailed" if "more detailed" in prompt else "?"] += 1
        return plus(prompt)

    _, report = evolve(ROWS, FakeEngine(sees), methods=["creativity", "details"])
    assert report["methods"] == {"creativity": seen["creative"], "details": seen["detailed"]}
    assert min(seen["creative"], seen["detailed"]) > 8


def test_rephrasings_that_are_the_same_are_left_out() -> None:
    class Some(FakeEngine):
        def answer(self, request, sampling, seed):  # type: ignore[no-untyped-def]
            from rlhf.generation.text_engine import Answer

            texts = ["Q 1?", "q  1? ", "what is 1?", "", "What is  1?"]
            return Answer(texts, [True, True, True, True, False], 1, 9)

    made, report = paraphrase([{"prompt": "q 1?", "completion": "c"}], Some(), k=5)
    assert [row["prompt"] for row in made] == ["q 1?", "what is 1?"]
    assert {row["completion"] for row in made} == {"c"}
    assert {row["group"] for row in made} == {"rows:1"}
    assert report["rephrasings_left_out"] == {"the same as another": 3, "empty": 1}
    assert (report["rows_in"], report["expanded"], report["rows_out"]) == (1, 1, 2)
    assert report["answers_cut_off"] == 1


def test_a_row_without_rephrasing_is_dropped_only_without_its_original() -> None:
    echo = FakeEngine(lambda p: fence(p, "text"))
    assert len(paraphrase(ROWS[:3], echo).rows) == 3
    made, report = paraphrase(ROWS[:3], echo, keep_original=False)
    assert made == []
    assert report["dropped"] == {"no rephrasing of it could be used": 3}


def test_only_the_question_of_a_row_with_context_is_rephrased() -> None:
    rows: list[Row] = [
        {"prompt": "문단 하나.\n\n문단 둘.\n\n누구인가?", "completion": "나", "group": "제목"},
        {"prompt": [{"role": "user", "content": "C\n\nwho?"}], "completion": [{"role": "assistant", "content": "me"}]},
    ]
    engine = FakeEngine(lambda p: "R " + fence(p, "text"))
    made, _ = paraphrase(rows[:1], engine, part="last_paragraph", language="ko", keep_original=False)
    assert made == [{"prompt": "문단 하나.\n\n문단 둘.\n\nR 누구인가?", "completion": "나", "group": "제목"}]
    made, _ = paraphrase(rows[1:], engine, part="last_paragraph", keep_original=False)
    assert made[0]["prompt"] == [{"role": "user", "content": "C\n\nR who?"}]


@pytest.mark.parametrize("blank", ["\n\n", "\r\n\r\n", "\n \t\n", "\n\n\n"])
def test_a_blank_line_is_one_whatever_stands_on_it(blank: str) -> None:
    """Else the context would be rephrased with the question, and the answer no longer be in it."""
    engine = FakeEngine(lambda p: "R " + fence(p, "text"))
    row = {"prompt": f"Context one.{blank}Context two.{blank}who?\r\n", "completion": "me"}
    made, _ = paraphrase([row], engine, part="last_paragraph", keep_original=False)
    assert made[0]["prompt"] == f"Context one.{blank}Context two.{blank}R who?"


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="all the same"):
        ParaphraseStep.model_validate({"engine": "a", "k": 2, "sampling": {"temperature": 0.0}})
    with pytest.raises(ValidationError, match=r"sampling.n: must be 1"):
        ParaphraseStep.model_validate({"engine": "a", "sampling": {"n": 2}})
    with pytest.raises(ValidationError, match=r"sampling.n: must be 1"):
        EvolveStep.model_validate({"engine": "a", "sampling": {"n": 2}})


def test_every_prompt_is_there_in_both_languages_and_holds_what_it_needs() -> None:
    names = {path.name.rsplit(".", 2)[0] for path in FOLDER.glob("*.txt")}
    assert {path.name for path in FOLDER.glob("*.txt")} == {f"{n}.{lang}.txt" for n in names for lang in ("en", "ko")}
    needs = {
        "judge": ["prompt", "a", "b", "form"],
        "score": ["prompt", "completion", "aspect", "form"],
        "evolve": ["prompt", "completion", "method"],
        "paraphrase": ["prompt"],
    }
    for name, holds in needs.items():
        for language in ("en", "ko"):
            text = template(None, name, language)
            assert all(text.count(f"{{{held}}}") == 1 for held in holds), (name, language)
            assert (max(text) >= "\uac00") == (language == "ko")


def test_a_users_own_prompt_file(tmp_path: Path) -> None:
    file = tmp_path / "evolve.txt"
    file.write_bytes("\ufeffMake {completion} better for {prompt}".encode())
    engine = FakeEngine(lambda p: p.split(" ")[0] + " new")
    made, _ = evolve(ROWS[:1], engine, prompt=str(file))
    assert made[0]["completions"][1] == "Make new"
    file.write_bytes(b"\xff{completion}{prompt}")
    with pytest.raises(RecipeError, match="not UTF-8"):
        evolve(ROWS[:1], engine, prompt=str(file))
    with pytest.raises(RecipeError, match=r"must hold \{completion\}"):
        evolve(ROWS[:1], engine, prompt="Make {prompt} better")
