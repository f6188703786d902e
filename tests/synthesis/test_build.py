"""Model steps inside `rlhf data build`: the folder, the balance, what is refused before and after a model is asked."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlhf.data.build import build as data_build
from rlhf.data.load import Stream
from rlhf.errors import DataError, RecipeError, RlhfError
from rlhf.generation.text_engine import Answer, Request
from rlhf.recipe.sections import SourceSection
from rlhf.recipe.synthesis import PriceSection, TextSampling
from rlhf.synthesis.steps import ModelSteps
from tests.data.support import lines
from tests.synthesis.support import FakeEngine, balanced, build, fence, read, recipe

POOL: dict[str, Any] = {"pool": {"members": [{"engine": "a"}, {"engine": "b"}], "per_prompt": 2}}


def source(folder: Path, n: int = 40) -> str:
    return lines(folder / "rows.jsonl", [{"prompt": f"q{i}", "completion": f"c{i}"} for i in range(n)])


def judge_of_length(prompt: str) -> str:
    if "<answer_A" not in prompt:
        return "a longer answer to " + prompt
    a, b = len(fence(prompt, "answer_A")), len(fence(prompt, "answer_B"))
    return f"Verdict: {'A' if a > b else 'B' if b > a else 'tie'}"


def test_from_prompts_to_pairs(tmp_path: Path) -> None:
    steps = [POOL, {"dedup": {}}, {"judge": {"engine": "a"}}, {"select": {}}, {"split": {"test": 0.25}}]
    rows = [*({"prompt": f"q{i}", "completion": f"c{i}"} for i in range(30)), {"prompt": "q3", "completion": "again"}]
    made = recipe(tmp_path / "out", lines(tmp_path / "rows.jsonl", rows), *steps, engines=["a", "b"])
    report = build(made, a=FakeEngine(judge_of_length), b=FakeEngine(lambda p: f"b{p}"))
    balanced(report)
    assert [step["step"] for step in report["steps"]] == ["pool", "dedup", "judge", "select", "split"]
    assert report["dropped"] == {"duplicate": 1}
    assert (report["rows_in"], report["expanded"], report["rows_out"], report["kind"]) == (31, 0, 30, "preference")
    train, test = read(tmp_path / "out"), read(tmp_path / "out", "test")
    expected = [
        {"prompt": f"q{i}", "chosen": f"a longer answer to q{i}", "rejected": f"c{i}", "margin": 1.0} for i in range(30)
    ]
    in_order = sorted([*train, *test], key=lambda row: int(row["prompt"][1:]))
    assert in_order == expected
    assert train == [row for row in expected if row in train]  # the source's order, on either side
    pool, judge = report["steps"][0], report["steps"][2]
    assert pool["engines"]["a"]["completion_tokens"] == 31 * 3
    assert judge["engines"]["a"]["requests"] == 30 * 6
    assert report["steps"][3]["chosen_by_model"] == {"a": 30}
    assert json.loads((tmp_path / "out/report.json").read_text()) == report


def test_rankings_keep_who_wrote_what_and_are_read_by_later_stages(tmp_path: Path) -> None:
    made = recipe(tmp_path / "out", source(tmp_path), POOL, {"judge": {"engine": "a"}}, engines=["a", "b"])
    build(made, a=FakeEngine(judge_of_length), b=FakeEngine(lambda p: f"b{p}"))
    rows = read(tmp_path / "out")
    assert set(rows[0]) == {"prompt", "completions", "scores", "models"}
    assert {tuple(sorted(row["models"])) for row in rows} == {("a", "b", "source")}
    again = Stream([SourceSection(path=str(tmp_path / "out"), split="train")])
    assert [row.data["scores"] for row in again] == [row["scores"] for row in rows]


def test_running_again_asks_nobody_and_makes_the_same(tmp_path: Path) -> None:
    made = recipe(
        tmp_path / "out", source(tmp_path), POOL, {"judge": {"engine": "a"}}, {"select": {}}, engines=["a", "b"]
    )
    first = build(made, a=FakeEngine(judge_of_length), b=FakeEngine())
    rows = read(tmp_path / "out")

    def nobody(section: Any, name: str) -> Any:
        raise AssertionError(f"{name} was opened")

    with ModelSteps(made, nobody) as steps:
        second = data_build(made, steps)
    assert read(tmp_path / "out") == rows
    assert second["rows_out"] == first["rows_out"]
    engines = second["steps"][1]["engines"]["a"]
    assert engines["from_journal"] == engines["requests"] == first["steps"][1]["engines"]["a"]["requests"]


def test_changed_settings_start_anew_and_unchanged_steps_do_not(tmp_path: Path, capsys: Any) -> None:
    def run(judge: dict[str, Any], seed: int = 0) -> tuple[int, int]:
        engines = {"a": FakeEngine(judge_of_length), "b": FakeEngine(judge_of_length)}
        pool = {"pool": {"members": [{"engine": "b"}], "per_prompt": 1}}
        steps = [pool, {"judge": {"engine": "a", **judge}}]
        build(recipe(tmp_path / "out", src, *steps, engines=["a", "b"], seed=seed), **engines)
        return len(engines["b"].keys), len(engines["a"].keys)

    src = source(tmp_path, 5)
    assert run({}) == (5, 10)
    assert run({"retries": 3}) == (0, 0)  # how often to ask again changes no answer
    assert run({"language": "ko"}) == (0, 10)
    assert "kept as step-2." in capsys.readouterr().err
    assert run({}) == (0, 0)  # back to what was: its answers are still there
    assert run({}, seed=1) == (5, 10)


def test_a_row_that_failed_comes_back_without_the_others_being_paid_for_again(tmp_path: Path, capsys: Any) -> None:
    """A request that fails in one step drops its row, which must not make strangers of all rows after it in the next."""
    steps = [{"generate": {"engine": "a", "into": "completions"}}, {"judge": {"engine": "b"}}]
    made = recipe(tmp_path / "out", source(tmp_path, 30), *steps, engines=["a", "b"])

    class Once(FakeEngine):
        def answer(self, request: Request, sampling: TextSampling, seed: int) -> Answer:
            good = super().answer(request, sampling, seed)
            return good if request.prompt != "q3" else Answer([], [], 0, 0, 5, "HTTP 500")

    assert build(made, a=Once(), b=FakeEngine(judge_of_length))["rows_out"] == 29
    assert "1 requests failed (mostly: HTTP 500)" in capsys.readouterr().err
    engines = {"a": FakeEngine(), "b": FakeEngine(judge_of_length)}
    report = build(made, **engines)
    assert report["rows_out"] == 30
    assert engines["a"].prompts == ["q3"]
    assert len(engines["b"].prompts) == 2
    assert all("\nq3\n" in prompt for prompt in engines["b"].prompts)


def test_a_step_put_in_front_makes_nothing_new(tmp_path: Path) -> None:
    steps = [{"generate": {"engine": "a"}}, {"judge": {"engine": "b"}}]
    for more in ([], [{"dedup": {"engine": "exact"}}]):
        engines = {"a": FakeEngine(), "b": FakeEngine(judge_of_length)}
        made = recipe(tmp_path / "out", source(tmp_path, 9), *more, *steps, engines=["a", "b"])
        assert build(made, **engines)["rows_out"] == 9
        assert [len(engine.keys) for engine in engines.values()] == ([0, 0] if more else [9, 18])


def test_two_steps_alike_draw_different_samples(tmp_path: Path) -> None:
    again = {"generate": {"engine": "a", "sampling": {"n": 2}}}
    steps = [again, again, {"score": {"callable": "tests.synthesis.test_build:lengths"}}]
    made = recipe(tmp_path / "out", source(tmp_path, 4), *steps, engines=["a"])
    report = build(made, a=FakeEngine())
    assert [len(row["completions"]) for row in read(tmp_path / "out")] == [5] * 4
    assert report["steps"][2]["scored"] == 20


def lengths(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("spec", ["own_scores:score", "./own_scores.py:score", "~/own_scores.py:score"])
def test_a_callable_that_was_changed_scores_anew(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "own_scores.py"
    ranking = {"prompt": "q", "completions": ["a", "bbb"], "scores": [0, 0]}
    made = recipe(tmp_path / "out", lines(tmp_path / "r.jsonl", [ranking]), {"score": {"callable": spec}})
    for text, expected in (("len(c)", [1.0, 3.0]), ("-len(c)", [-1.0, -3.0])):
        module.write_text(f"def score(prompts, completions):\n    return [{text} for c in completions]\n")
        for name in [name for name in sys.modules if name.startswith("own_scores")]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        build(made)
        assert [row["scores"] for row in read(tmp_path / "out")] == [expected]
    assert "made for other settings" in capsys.readouterr().err


def test_one_engine_is_open_at_a_time(tmp_path: Path) -> None:
    opened: list[str] = []
    engines = {"a": FakeEngine(judge_of_length), "b": FakeEngine()}

    def opening(section: Any, name: str) -> FakeEngine:
        assert sum(opened.count(n) - e.closed for n, e in engines.items()) == 0
        opened.append(name)
        return engines[name]

    made = recipe(tmp_path / "out", source(tmp_path, 5), POOL, {"judge": {"engine": "b"}}, engines=["a", "b"])
    with ModelSteps(made, opening) as steps, pytest.raises(DataError, match="no row is left after step 2"):
        data_build(
            made, steps
        )  # b answers what is no verdict: nothing is left, and the engines are closed all the same
    assert opened == ["a", "b"]
    assert (engines["a"].closed, engines["b"].closed) == (1, 1)


def test_an_engine_of_several_members_is_opened_once(tmp_path: Path) -> None:
    opened: list[str] = []

    def opening(section: Any, name: str) -> FakeEngine:
        opened.append(name)
        return FakeEngine(judge_of_length)

    members = [{"engine": "a"}, {"engine": "b"}, {"engine": "a", "system": "Be brief."}]
    steps = [{"pool": {"members": members, "per_prompt": 3}}, {"judge": {"engine": "b"}}]
    made = recipe(tmp_path / "out", source(tmp_path, 5), *steps, engines=["a", "b"])
    with ModelSteps(made, opening) as hook:
        data_build(made, hook)
    assert opened == ["a", "b"]


def test_paraphrases_stay_on_their_originals_side(tmp_path: Path) -> None:
    step = {"paraphrase": {"engine": "a", "k": 2, "sampling": {"temperature": 1.0}}}
    made = recipe(tmp_path / "out", source(tmp_path), step, {"split": {"test": 0.4, "by": "group"}}, engines=["a"])
    report = build(made, a=FakeEngine(lambda p: "R " + fence(p, "text")))
    balanced(report)
    assert (report["rows_in"], report["expanded"], report["rows_out"]) == (40, 80, 120)
    sides = [{row["completion"] for row in read(tmp_path / "out", side)} for side in ("train", "test")]
    assert sides[0] & sides[1] == set()
    assert len(sides[1]) > 5


@pytest.mark.parametrize(
    ("steps", "engines", "message"),
    [
        (
            [{"generate": {"engine": "smal"}}],
            ["small"],
            r"steps.0.generate.engine: no engine 'smal'; did you mean 'small'?",
        ),
        ([{"generate": {"engine": "x"}}], [], "the recipe has no engines: section"),
        ([{"dedup": {}}], ["small"], "engines.small: no step asks it"),
        ([POOL], ["a", "b"], "steps.0.pool: its completions are never scored"),
        ([POOL, {"select": {}}], ["a", "b"], "steps.1.select: the completions of steps.0.pool have no scores yet"),
        (
            [POOL, {"dedup": {}}, {"pairs": {}}, {"judge": {"engine": "a"}}],
            ["a", "b"],
            "steps.2.pairs: the completions",
        ),
        ([{"evolve": {"engine": "a"}}], ["a"], "steps.0.evolve: its completions are never scored"),
        ([{"judge": {"engine": "a"}}, {"evolve": {"engine": "a"}}], ["a"], "steps.1.evolve: its completions"),
        ([{"generate": {"engine": "a"}, "dedup": {}}], ["a"], "exactly one of pairs, dedup"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_asked(
    tmp_path: Path, steps: list[Any], engines: list[str], message: str
) -> None:
    with pytest.raises(ValidationError) as error:
        recipe(tmp_path / "out", "x.jsonl", *steps, engines=engines)
    assert message in str(error.value)


def test_a_prompt_file_that_is_not_there_is_found_before_a_model_is_asked(tmp_path: Path) -> None:
    later = {"judge": {"engine": "a", "prompt": str(tmp_path / "none.txt")}}
    made = recipe(tmp_path / "out", source(tmp_path), POOL, later, engines=["a", "b"])
    engine = FakeEngine()
    with pytest.raises(RecipeError, match=r"none\.txt: cannot be read"):
        build(made, a=engine, b=engine)
    assert engine.keys == []


def test_completions_that_lost_their_scores_do_not_become_a_data_set(tmp_path: Path) -> None:
    rows = lines(
        tmp_path / "r.jsonl", [{"prompt": f"q{i}", "completions": ["a", "b"], "scores": [1, 2]} for i in range(3)]
    )
    made = recipe(tmp_path / "out", rows, {"evolve": {"engine": "a", "keep": "last"}}, engines=["a"])
    with pytest.raises(RecipeError, match="add score or judge"):
        build(made, a=FakeEngine(lambda p: fence(p, "answer") + "!"))


def test_a_build_without_the_hook_says_where_it_is(tmp_path: Path) -> None:
    made = recipe(tmp_path / "out", source(tmp_path), {"generate": {"engine": "a", "into": "rejected"}}, engines=["a"])
    with pytest.raises(RecipeError, match=r"rlhf\.synthesis\.build"):
        data_build(made)


def test_a_journal_in_use_is_not_shared(tmp_path: Path) -> None:
    step = {"generate": {"engine": "a", "into": "rejected"}}
    made = recipe(tmp_path / "out", source(tmp_path), step, engines=["a"])

    class Rival(FakeEngine):
        def answer(self, request, sampling, seed):  # type: ignore[no-untyped-def]
            with pytest.raises(RlhfError, match=r"another (run|build) is writing"):
                build(recipe(tmp_path / "out", source(tmp_path), step, engines=["a"]), a=FakeEngine())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(made, a=Rival())


def test_a_price_is_multiplied_with_all_tokens_and_a_new_one_asks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recipe(
        tmp_path / "out", source(tmp_path, 10), {"generate": {"engine": "a", "into": "rejected"}}, engines=["a"]
    )
    build(made, a=FakeEngine(lambda p: "an answer"))
    for price, cost in (
        ({"prompt": 1e6, "completion": 0.0}, "prompt_tokens"),
        ({"prompt": 0.0, "completion": 2e6}, "completion_tokens"),
    ):
        priced = made.model_copy(
            update={"engines": {"a": made.engines["a"].model_copy(update={"price": PriceSection(**price)})}}
        )
        [step] = build(priced, a=FakeEngine(lambda p: "another"))["steps"]
        used = step["engines"]["a"]
        assert used["from_journal"] == used["requests"] == 10
        assert used["cost"] == used[cost] * max(price.values()) / 1e6 > 0
        assert f"cost: a {used['cost']:.4f}" in capsys.readouterr().err
