"""generate and pool: what becomes of an answer, and who is asked."""

from __future__ import annotations

from collections import Counter

import pytest

from rlhf.data.rows import Row
from rlhf.errors import DataError, RecipeError
from rlhf.synthesis import generate, pool
from rlhf.synthesis.answering import draw
from tests.synthesis.support import FakeEngine

CHAT: Row = {
    "prompt": [{"role": "user", "content": "hi"}],
    "completion": [{"role": "assistant", "content": "hello"}],
}


def test_rejected_drops_what_is_empty_or_equals_chosen() -> None:
    rows: list[Row] = [{"prompt": p, "completion": "good"} for p in ("empty", "space", "same", "padded", "other")]
    told = {"empty": "", "space": " \n", "same": "good", "padded": " good\n", "other": "\nbad "}
    made, report = generate(rows, FakeEngine(told.__getitem__), into="rejected")
    assert made == [{"prompt": "other", "chosen": "good", "rejected": "bad"}]
    assert report["dropped"] == {"the answer is empty": 2, "the answer equals chosen": 2}
    assert (report["rows_in"], report["rows_out"]) == (5, 1)
    assert report["answers_dropped"] == report["dropped"]


def test_several_rejected_make_several_pairs() -> None:
    rows: list[Row] = [{"prompt": "q", "completion": "c"}]
    made, report = generate(rows, FakeEngine(), into="rejected", sampling={"n": 3, "temperature": 1.0})
    assert len(made) == 3
    assert len({row["rejected"] for row in made}) == 3
    assert (report["rows_in"], report["expanded"], report["rows_out"]) == (1, 2, 3)


def test_completions_keep_the_rows_own_first_and_tell_who_wrote_what() -> None:
    rows: list[Row] = [{"prompt": "q", "completion": "c"}, {"prompt": "r"}]
    with pytest.raises(DataError, match="rows:2: generate, into: rejected needs a prompt with a completion"):
        generate(rows, FakeEngine(), into="rejected")
    made, report = generate(rows, FakeEngine(), sampling={"n": 2, "temperature": 1.0})
    assert [row["models"] for row in made] == [["source", "engine", "engine"], ["engine", "engine"]]
    assert made[0]["completions"][0] == "c"
    assert report["answers_kept"] == {"engine": 4}


def test_equal_samples_are_one() -> None:
    class Same(FakeEngine):
        def answer(self, request, sampling, seed):  # type: ignore[no-untyped-def]
            from rlhf.generation.text_engine import Answer

            return Answer(["x", " x", "y"], [True, True, False], 1, 3)

    made, report = generate([{"prompt": "q"}], Same(), sampling={"n": 3, "temperature": 1.0})
    assert made[0]["completions"] == ["x", "y"]
    assert report["answers_dropped"] == {"the answer equals another": 1}
    assert report["answers_cut_off"] == 1
    made, report = generate([{"prompt": "q"}], Same(), sampling={"n": 3, "temperature": 1.0}, cut_off="drop")
    assert made[0]["completions"] == ["x"]
    assert report["answers_dropped"] == {"the answer equals another": 1, "the answer was cut off": 1}


def test_whitespace_stays_for_continuations() -> None:
    rows: list[Row] = [{"prompt": "The film", "completion": " was good."}]
    engine = FakeEngine(lambda _: " was bad. ")
    assert generate(rows, engine, into="rejected").rows[0]["rejected"] == "was bad."
    assert generate(rows, engine, into="rejected", strip=False).rows[0]["rejected"] == " was bad. "


def test_messages_stay_messages_and_a_system_message_comes_first() -> None:
    engine = FakeEngine(lambda p: p)
    made, _ = generate([CHAT], engine, into="rejected", system="Be brief.")
    assert made[0]["rejected"] == [{"role": "assistant", "content": "system: Be brief.\nuser: hi"}]
    assert made[0]["prompt"] == CHAT["prompt"]
    own = {"prompt": [{"role": "system", "content": "You are a pirate."}, *CHAT["prompt"]]}
    made, _ = generate([own], engine, into="completion", system="Be brief.")
    assert made[0]["completion"][0]["content"] == "system: Be brief.\n\nYou are a pirate.\nuser: hi"
    assert made[0]["prompt"] == own["prompt"]
    made, _ = generate([{"prompt": "hi"}], engine, into="completion", system="Be brief.")
    assert made == [{"prompt": "hi", "completion": "system: Be brief.\nuser: hi"}]


def test_a_template_is_filled_once_and_must_hold_the_prompt(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "shape.txt"
    file.write_text("### {prompt}\n{other} {{x}}", encoding="utf-8")
    made, _ = generate([{"prompt": "{prompt} {other}"}], FakeEngine(lambda p: p), into="completion", prompt=str(file))
    assert made[0]["completion"] == "### {prompt} {other}\n{other} {{x}}"
    with pytest.raises(RecipeError, match=r"must hold \{prompt\}; did you mean it by \{promt\}"):
        generate([{"prompt": "q"}], FakeEngine(), prompt="Say: {promt}")
    with pytest.raises(RecipeError, match="cannot be read"):
        generate([{"prompt": "q"}], FakeEngine(), prompt=str(tmp_path / "missing.txt"))


def test_a_pool_asks_each_member_with_its_own_words() -> None:
    engines = {"a": FakeEngine(lambda p: f"a:{p}"), "b": FakeEngine(lambda p: f"b:{p}")}
    members = [{"engine": "a", "name": "kind", "system": "Be kind."}, {"engine": "b"}, {"engine": "b", "system": "S"}]
    rows: list[Row] = [{"prompt": f"q{i}"} for i in range(10)]
    made, report = pool(rows, engines, members=members, per_prompt=3)
    for i, row in enumerate(made):
        by_model = dict(zip(row["models"], row["completions"], strict=True))
        assert by_model == {
            "kind": f"a:system: Be kind.\nuser: q{i}",
            "b/2": f"b:q{i}",
            "b/3": f"b:system: S\nuser: q{i}",
        }
    assert report["engines"]["a"]["requests"] == 10
    assert report["engines"]["b"]["requests"] == 20


def test_a_pool_draws_by_weight_without_repeating_itself() -> None:
    first: Counter[int] = Counter()
    for position in range(6000):
        found = draw([1.0, 2.0, 3.0], 3, 7, position)
        assert sorted(found) == [0, 1, 2]
        first[found[0]] += 1
    for index, share in enumerate((1 / 6, 2 / 6, 3 / 6)):
        deviation = (share * (1 - share) * 6000) ** 0.5
        assert abs(first[index] - share * 6000) < 4.5 * deviation
    assert Counter(draw([1.0, 1.0], 5, 0, 3)) in (Counter({0: 3, 1: 2}), Counter({0: 2, 1: 3}))
    assert draw([1.0, 2.0, 3.0], 2, 7, 0) == draw([1.0, 2.0, 3.0], 3, 7, 0)[:2]


def test_scored_rows_are_not_answered_over() -> None:
    row: Row = {"prompt": "q", "completions": ["a", "b"], "scores": [1.0, 2.0]}
    with pytest.raises(DataError, match="scored already"):
        generate([row], FakeEngine())
    made, _ = generate([{"prompt": "q", "completions": ["a", "b"], "models": ["x", "y"]}], FakeEngine())
    assert made == [{"prompt": "q", "completions": ["a", "b", "answer to q"], "models": ["x", "y", "engine"]}]
