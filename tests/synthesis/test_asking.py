"""How steps ask: once each, in bounded memory, in any order, and rows in the rows' order whatever happens."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.rows import Row
from rlhf.errors import DataError, RlhfError
from rlhf.generation.text_engine import Answer, Request
from rlhf.recipe.synthesis import TextSampling
from rlhf.synthesis import evolve, generate, judge, pool, score
from rlhf.synthesis.asking import FAILURES, REASONS, chance
from tests.synthesis.support import FakeEngine, fence

ROWS: list[Row] = [{"prompt": f"q{i}", "completion": f"c{i}"} for i in range(30)]


class Faulty(FakeEngine):
    """Breaks its word: what `answers` yields goes through `spoil`."""

    def __init__(self, spoil: Any) -> None:
        super().__init__()
        self.spoil = spoil

    def answers(
        self, requests: Iterable[Request], sampling: TextSampling, *, seed: int, choices: list[str] | None = None
    ) -> Iterator[tuple[Request, Answer]]:
        for number, pair in enumerate(super().answers(requests, sampling, seed=seed)):
            yield from self.spoil(number, *pair)


def test_rows_come_in_order_and_each_request_once() -> None:
    engine = FakeEngine(ahead=11)
    rows, report = generate(ROWS, engine, into="rejected")
    assert rows == [{"prompt": f"q{i}", "chosen": f"c{i}", "rejected": f"answer to q{i}"} for i in range(30)]
    assert sorted(engine.prompts) == sorted(row["prompt"] for row in ROWS)
    assert engine.prompts != [row["prompt"] for row in ROWS]  # the engine did scramble them
    assert report["engines"]["engine"] == {
        "requests": 30,
        "from_journal": 0,
        "failed": 0,
        "failures": {},
        "retries": 0,
        "prompt_tokens": 150,
        "completion_tokens": 90,
    }


def test_requests_are_drawn_as_the_engine_works(tmp_path: Path) -> None:
    """No more is read ahead than the engine asks for: after each answer, what was drawn is what it had out."""
    drawn = 0

    class Counting(FakeEngine):
        def answers(
            self, requests: Iterable[Request], sampling: TextSampling, *, seed: int, choices: list[str] | None = None
        ) -> Iterator[tuple[Request, Answer]]:
            def counted() -> Iterator[Request]:
                nonlocal drawn
                for request in requests:
                    drawn += 1
                    yield request

            for number, pair in enumerate(super().answers(counted(), sampling, seed=seed)):
                assert drawn <= (number // self.ahead + 1) * self.ahead
                yield pair

    generate(ROWS, Counting(ahead=4), into="rejected")
    assert drawn == 30


def test_a_second_run_pays_nothing_and_opens_no_engine(tmp_path: Path) -> None:
    journal = tmp_path / "j.jsonl"
    first = generate(ROWS, FakeEngine(), journal=journal, into="rejected")
    idle = FakeEngine()
    second = generate(ROWS, idle, journal=journal, into="rejected")
    assert second.rows == first.rows
    assert idle.choices == []
    used = second.report["engines"]["engine"]
    assert (used["requests"], used["from_journal"], used["completion_tokens"]) == (30, 30, 90)


def test_only_rows_that_changed_are_asked_again(tmp_path: Path) -> None:
    journal = tmp_path / "j.jsonl"
    generate(ROWS, FakeEngine(), journal=journal, into="rejected")
    changed = [{**row, "prompt": "new"} if i == 4 else row for i, row in enumerate(ROWS)]
    engine = FakeEngine()
    rows, _ = generate([*changed, {"prompt": "more", "completion": "x"}], engine, journal=journal, into="rejected")
    assert sorted(engine.prompts) == ["more", "new"]
    assert rows[4]["rejected"] == "answer to new"


def test_rows_may_move_and_go_without_being_paid_for_again(tmp_path: Path) -> None:
    """What a row is called hangs on its prompt, not on its place, and so does what is drawn for it."""
    journal = tmp_path / "j.jsonl"
    members = {"members": [{"engine": "a", "system": s} for s in "xyz"], "per_prompt": 2}
    first = pool(ROWS, {"a": FakeEngine()}, journal=journal, **members).rows
    moved = [{"prompt": "in front"}, *reversed(ROWS[3:]), ROWS[0]]
    moved[0]["completion"] = "c"
    engine = FakeEngine()
    rows, report = pool(moved, {"a": engine}, journal=journal, **members)
    assert {prompt.rpartition("\n")[2] for prompt in engine.prompts} == {"user: in front"}
    assert report["engines"]["a"]["from_journal"] == 2 * 28
    assert rows[1:] == [*reversed(first[3:]), first[0]]


def test_rows_of_one_prompt_are_told_apart(tmp_path: Path) -> None:
    twice = [ROWS[0], ROWS[1], ROWS[0], ROWS[0]]
    sampling = {"n": 2}
    rows = generate(twice, FakeEngine(), journal=tmp_path / "j.jsonl", sampling=sampling).rows
    assert len({tuple(row["completions"]) for row in rows}) == 4  # each has samples of its own
    idle = FakeEngine()
    again = [twice[0], twice[2], twice[1]]
    made = generate(again, idle, journal=tmp_path / "j.jsonl", sampling=sampling).rows
    assert made == [rows[0], rows[2], rows[1]]
    assert idle.prompts == []


def test_a_row_without_a_prompt_is_named() -> None:
    with pytest.raises(DataError, match="rows:2: prompt: every row needs one; this row has question"):
        generate([ROWS[0], {"question": "q"}], FakeEngine())


def test_the_same_seed_gives_the_same_rows_whatever_the_order_of_the_answers() -> None:
    def made(ahead: int, seed: int) -> list[Row]:
        engine = FakeEngine(ahead=ahead)
        rows = pool(
            ROWS, {"a": engine, "b": engine}, members=[{"engine": "a"}, {"engine": "b"}], per_prompt=3, seed=seed
        )
        worse = FakeEngine(lambda p: fence(p, "answer") + " and more", ahead=ahead)
        return evolve(rows.rows, worse, evolutions=2, seed=seed).rows

    assert made(1, 0) == made(13, 0)
    assert made(1, 0) != made(1, 1)


def test_an_engine_that_answers_twice_or_not_at_all_is_found_out() -> None:
    with pytest.raises(RlhfError, match="not asked, or twice"):
        generate(ROWS, Faulty(lambda n, r, a: [(r, a), (r, a)]), into="rejected")
    with pytest.raises(RlhfError, match="left 15 requests unanswered"):
        generate(ROWS, Faulty(lambda n, r, a: [(r, a)] if n % 2 else []), into="rejected")
    with pytest.raises(RlhfError, match="not asked"):
        generate(ROWS, Faulty(lambda n, r, a: [(replace(r, key="0/0.0/other"), a)]), into="rejected")


def test_a_wrong_number_of_texts_is_a_failure_of_that_request_alone() -> None:
    def spoil(n: int, request: Request, answer: Answer) -> list[tuple[Request, Answer]]:
        return [(request, replace(answer, texts=["a", "b"], ended=[True] * 2) if request.prompt == "q7" else answer)]

    rows, report = generate(ROWS, Faulty(spoil), into="rejected")
    assert len(rows) == 29
    assert report["dropped"] == {"the engine failed": 1}
    assert report["engines"]["engine"]["failed"] == 1


def test_failures_drop_their_rows_and_are_asked_again(tmp_path: Path) -> None:
    def spoil(n: int, request: Request, answer: Answer) -> list[tuple[Request, Answer]]:
        bad = int(str(request.prompt)[1:]) % 3 == 0
        return [(request, Answer([], [], 0, 0, 5, "HTTP 500") if bad else answer)]

    journal = tmp_path / "j.jsonl"
    rows, report = generate(ROWS, Faulty(spoil), journal=journal, into="rejected")
    assert len(rows) == 20
    assert report["dropped"] == {"the engine failed": 10}
    assert report["engines"]["engine"] | {"prompt_tokens": 0} == {
        "requests": 30,
        "from_journal": 0,
        "failed": 10,
        "failures": {"HTTP 500": 10},
        "retries": 50,
        "prompt_tokens": 0,
        "completion_tokens": 60,
    }
    well = FakeEngine()
    rows, report = generate(ROWS, well, journal=journal, into="rejected")
    assert len(rows) == 30
    assert len(well.prompts) == 10


def test_an_engine_that_is_gone_stops_the_run_and_costs_no_rows(tmp_path: Path) -> None:
    journal = tmp_path / "j.jsonl"
    failed = Answer([], [], 0, 0, 5, "connection refused", gave_up=True)
    gone = Faulty(lambda n, r, a: [(r, a if n < 3 else failed)])
    with pytest.raises(RlhfError, match=f"{FAILURES} requests in a row failed, the last with: connection refused"):
        generate(ROWS, gone, journal=journal, into="rejected")
    well = FakeEngine()
    assert len(generate(ROWS, well, journal=journal, into="rejected").rows) == 30
    assert len(well.prompts) == 27


def test_rows_that_are_refused_do_not_stop_the_run_however_many_come_together(tmp_path: Path) -> None:
    """Too long for the model, say: sorted by length, or found by an engine that looks at many prompts first, they come in a row."""
    refused = Answer([], [], 0, 0, error="too long")
    rows = [*ROWS, *({"prompt": f"long {i}", "completion": "c"} for i in range(2 * FAILURES))]
    journal = tmp_path / "j.jsonl"
    for known in (0, 30):  # and once more with nothing left but them
        engine = Faulty(lambda n, r, a: [(r, refused if r.prompt.startswith("long") else a)])
        made, report = generate(rows, engine, journal=journal, into="rejected")
        assert len(made) == 30
        used = report["engines"]["engine"]
        assert (used["from_journal"], used["failures"]) == (known, {"too long": 2 * FAILURES})


def test_failures_are_told_apart_up_to_a_number() -> None:
    engine = Faulty(lambda n, r, a: [(r, Answer([], [], 0, 0, error=f"request {n}: no"))])
    _, report = generate(ROWS, engine, into="rejected")
    failures = report["engines"]["engine"]["failures"]
    assert len(failures) == REASONS + 1
    assert failures["other reasons"] == 30 - REASONS


def test_a_row_that_the_step_does_not_fit_is_named() -> None:
    rows = [ROWS[0], {"prompt": "p", "chosen": "a", "rejected": "b"}]
    for step in (generate, evolve, score, judge):
        with pytest.raises(DataError, match="rows:") as error:
            step(rows[1:], FakeEngine())  # type: ignore[operator]
        assert error.value.row == 1


def test_chance_is_even_and_depends_on_every_part() -> None:
    draws = [chance(0, "x", i) for i in range(4000)]
    assert all(0 <= d < 1 for d in draws)
    tenths = [sum(int(d * 10) == k for d in draws) for k in range(10)]
    assert max(abs(n - 400) for n in tenths) < 4.5 * 19  # 4.5 standard deviations of a binomial
    assert len({chance(*p) for p in (("a", "bc"), ("ab", "c"), ("abc",), ("a", "b", "c"), ("a", "bc", ""))}) == 5
    random.seed(0)
    assert chance(1, 2) == chance(1, 2)
