"""The batch plan: every row once an epoch, the same rows a step however many processes share it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.tokens.sampler import Sampler


def step_rows(n: int, step: int, world: int, **options: int) -> list[int]:
    ranks = [Sampler([1] * n, rank=r, world_size=world, **options).window(step) for r in range(world)]
    assert len({len(microbatches) for microbatches in ranks}) == 1, "a rank has more microbatches than another"
    return sorted(i for microbatches in ranks for rows in microbatches for i in rows)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    batch_size=st.integers(1, 5),
    world=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    budget=st.none() | st.integers(1, 60),
    epoch=st.integers(0, 2),
)
def test_every_row_once_an_epoch(
    lengths: list[int], batch_size: int, world: int, accumulation: int, budget: int | None, epoch: int
) -> None:
    options = {
        "batch_size": batch_size,
        "max_tokens": budget,
        "accumulation": accumulation,
        "world_size": world,
        "seed": 3,
    }
    samplers = [Sampler(lengths, rank=r, **options) for r in range(world)]
    start, steps = samplers[0].total_steps(epoch), samplers[0].steps_in(epoch)
    used: list[int] = []
    for step in range(start, start + steps):
        assert samplers[0].epoch_of(step) == epoch
        windows = [s.window(step) for s in samplers]
        assert len({len(w) for w in windows}) == 1
        assert 1 <= len(windows[0]) <= accumulation
        assert any(rows for w in windows for rows in w), "a step without a row"
        for rows in (rows for w in windows for rows in w):
            used += rows
            if budget is None:
                assert len(rows) <= batch_size
            else:
                assert len(rows) <= 1 or sum(lengths[i] for i in rows) <= budget
    assert sorted(used) == list(range(len(lengths)))


@given(n=st.integers(1, 50), step=st.integers(0, 20))
def test_sharing_does_not_change_a_steps_rows(n: int, step: int) -> None:
    """12 rows a step: alone, over accumulation steps, over ranks, or over both."""
    alone = step_rows(n, step, 1, batch_size=12)
    assert alone
    assert step_rows(n, step, 1, batch_size=4, accumulation=3) == alone
    assert step_rows(n, step, 3, batch_size=4) == alone
    assert step_rows(n, step, 2, batch_size=3, accumulation=2) == alone


def test_a_resumed_sampler_asks_for_its_step_alone() -> None:
    for options in ({"batch_size": 3}, {"max_tokens": 20}):
        lengths = [1 + i % 9 for i in range(50)]
        first = Sampler(lengths, seed=7, **options)
        seen = [first.window(step) for step in range(40)]
        assert Sampler(lengths, seed=7, **options).window(33) == seen[33]


def test_epochs_and_seeds_differ() -> None:
    sampler = Sampler([1] * 100, batch_size=100, seed=0)
    assert sampler.window(0) != sampler.window(1)
    assert sampler.window(0) != Sampler([1] * 100, batch_size=100, seed=1).window(0)
    assert Sampler([1] * 5, batch_size=5, shuffle=False).window(1) == [[0, 1, 2, 3, 4]]


def test_steps() -> None:
    sampler = Sampler([1] * 10, batch_size=2, accumulation=2)
    assert sampler.steps_per_epoch == 3
    assert [sampler.total_steps(e) for e in (0, 0.1, 0.5, 1, 1.5, 2)] == [0, 1, 2, 3, 5, 6]
    assert [len(r) for r in sampler.window(2)] == [1, 1], "the last window's rows are shared out"


def test_fewer_rows_than_slots() -> None:
    """5 rows over 4 ranks and 2 accumulation steps of 1: three ranks stand idle in the last microbatch."""
    windows = [Sampler([1] * 5, batch_size=1, rank=r, world_size=4, accumulation=2).window(0) for r in range(4)]
    assert [[len(rows) for rows in w] for w in windows] == [[1, 1], [1, 0], [1, 0], [1, 0]]


def test_a_token_budget_packs_in_order() -> None:
    sampler = Sampler([4, 4, 4, 99, 1, 1], max_tokens=8, shuffle=False)
    assert [sampler.window(s) for s in range(sampler.steps_per_epoch)] == [[[0, 1]], [[2]], [[3]], [[4, 5]]]


@pytest.mark.parametrize(
    "options", [{"lengths": []}, {"batch_size": 0}, {"rank": 1}, {"max_tokens": 0, "batch_size": 0}]
)
def test_what_makes_no_sense_is_refused(options: dict) -> None:
    with pytest.raises(ValueError):
        Sampler(**({"lengths": [1]} | options))


def test_the_dealing_by_hand() -> None:
    """Seven rows over three slots: 3, 2, 2. Eight rows of two ranks with two steps of three: 2, 2, 2, 2."""
    assert Sampler([1] * 7, batch_size=3, accumulation=3, shuffle=False).window(0) == [[0, 1, 2], [3, 4], [5, 6]]
    ranks = [Sampler([1] * 8, batch_size=3, rank=r, world_size=2, accumulation=2, shuffle=False) for r in range(2)]
    assert [sampler.window(0) for sampler in ranks] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


def test_a_budget_that_is_just_reached_is_not_exceeded() -> None:
    sampler = Sampler([3, 5, 1, 8, 2, 6, 9], max_tokens=8, accumulation=2, shuffle=False)
    assert [sampler.window(step) for step in range(sampler.steps_per_epoch)] == [[[0, 1], [2]], [[3], [4, 5]], [[6]]]
    assert sampler.steps_per_epoch == 3
    assert [sampler.epoch_of(step) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert sampler.window(4) == [[3], [4, 5]]


def test_what_a_sampler_refuses_and_takes() -> None:
    for options in (
        {"rank": -1},
        {"rank": 2, "world_size": 2},
        {"world_size": 0},
        {"accumulation": 0},
        {"max_tokens": -1},
    ):
        with pytest.raises(ValueError):
            Sampler([1], **options)
    last = Sampler([1], rank=1, world_size=2)
    assert last.window(0) == [[]]
    with pytest.raises(ValueError, match="count from 0"):
        last.window(-1)


def test_what_a_sampler_does_unless_asked() -> None:
    """One row a step, shuffled with seed 0, on one rank."""
    plain = Sampler([1] * 20)
    assert [plain.window(step) for step in range(20)] == [
        Sampler([1] * 20, batch_size=1, seed=0, shuffle=True, rank=0, world_size=1, accumulation=1).window(step)
        for step in range(20)
    ]
    assert all(len(rows) == 1 for step in range(20) for rows in plain.window(step))


def test_with_a_budget_an_epoch_may_have_another_number_of_steps() -> None:
    sampler = Sampler([1 + i * 5 % 7 for i in range(24)], max_tokens=9, seed=2)
    assert [sampler.steps_in(epoch) for epoch in range(4)] == [13, 14, 14, 13]
    assert sampler.steps_per_epoch == 13
    assert [sampler.total_steps(epochs) for epochs in (1, 1.5, 2, 3)] == [13, 20, 27, 41]
    assert [sampler.epoch_of(step) for step in (12, 13, 26, 27, 40, 41)] == [0, 1, 1, 2, 2, 3]
    rows = [i for step in range(13, 27) for batch in sampler.window(step) for i in batch]
    assert sorted(rows) == list(range(24))
