"""Measures against hand-computed values, exact references, and what their intervals promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlhf.evaluate import measures

scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30)


def test_a_mean_by_hand() -> None:
    estimate = measures.mean([1.0, 2.0, 3.0])  # sd 1, se 0.577, t(2) 4.303
    assert estimate.value == 2.0
    assert estimate.n == 3
    assert estimate.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    assert estimate.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)


def test_samples_of_one_prompt_count_as_one_prompt() -> None:
    twice = measures.mean([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert twice == measures.mean([1.0, 2.0, 3.0])
    assert measures.share([[1, 0], [1, 1]]) == measures.share([0.5, 1.0])


def test_one_prompt_has_no_interval() -> None:
    estimate = measures.mean([4.0])
    assert (estimate.low, estimate.high) == (None, None)


def test_nothing_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="nothing"):
        measures.mean([])


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 19, 199])
def test_the_t_quantile(freedom: int) -> None:
    assert measures.t95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=5e-3 if freedom == 3 else 1e-3)


@pytest.mark.parametrize(("wins", "n"), [(0, 10), (3, 10), (10, 10), (70, 200)])
def test_wilson_against_scipy(wins: int, n: int) -> None:
    estimate = measures.share([1.0] * wins + [0.0] * (n - wins))
    exact = stats.binomtest(wins, n).proportion_ci(0.95, method="wilson")
    assert estimate.value == wins / n
    assert estimate.low == pytest.approx(exact.low, abs=1e-9)
    assert estimate.high == pytest.approx(exact.high, abs=1e-9)


def test_a_share_lies_between_zero_and_one() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        measures.share([0.5, 1.5])


@given(scores)
def test_a_model_against_itself_wins_half(own: list[float]) -> None:
    assert measures.share(measures.outcomes(own, own)).value == 0.5


@given(scores)
def test_win_rates_of_both_sides_add_to_one(own: list[float]) -> None:
    other = own[::-1]
    there = measures.share(measures.outcomes(own, other))
    back = measures.share(measures.outcomes(other, own))
    assert there.value + back.value == pytest.approx(1.0)
    assert there.low is not None
    assert back.high is not None
    assert there.low + back.high == pytest.approx(1.0)


def test_a_tie_is_half_a_win() -> None:
    assert measures.outcomes([2, 1, 0], [1, 1, 1]).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("p", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("ties", [0.0, 0.4])
def test_win_rate_intervals_cover_in_simulation(p: float, ties: float) -> None:
    rng = np.random.default_rng(0)
    won = (rng.random((2000, 40)) < p).astype(float)
    won[rng.random(won.shape) < ties] = 0.5
    truth = (1 - ties) * p + ties / 2
    estimates = [measures.share(row) for row in won]
    covered = np.mean([e.low <= truth <= e.high for e in estimates])  # type: ignore[operator]
    assert covered >= 0.93
    if not ties:  # with ties it is wide on purpose
        assert covered <= 0.985


def test_mean_intervals_cover_in_simulation() -> None:
    rng = np.random.default_rng(1)
    estimates = [measures.mean(row) for row in rng.normal(0.3, 2.0, (2000, 8))]
    covered = np.mean([e.low <= 0.3 <= e.high for e in estimates])  # type: ignore[operator]
    assert covered == pytest.approx(0.95, abs=0.015)


def test_preference_accuracy_counts_ties_half_and_prompts_once() -> None:
    estimate = measures.preference_accuracy([2, 1, 1, 5], [1, 1, 2, 4], ["a", "a", "b", "b"])
    assert estimate.value == (1 + 0.5 + 0 + 1) / 4
    assert estimate.n == 2
    alone = measures.preference_accuracy([2, 1, 1, 5], [1, 1, 2, 4], ["a", "b", "c", "d"])
    assert alone.low > estimate.low  # type: ignore[operator]


def test_length_statistics() -> None:
    found = measures.lengths([[1, 3], [5, 7]])
    assert found["mean"]["value"] == 4.0
    assert (found["median"], found["max"]) == (4.0, 7.0)
    assert found["p95"] == pytest.approx(6.7)


def test_distinct_by_hand() -> None:
    completions = [[1, 2, 1, 2], [1, 2]]
    assert measures.distinct(completions, 1) == 2 / 6
    assert measures.distinct(completions, 2) == 2 / 4  # (1,2) (2,1) (1,2) | (1,2)
    assert measures.distinct([[1]], 2) is None


def test_repetition_by_hand() -> None:
    assert measures.repetition([[1, 2, 3, 4, 5]]) == 0.0
    assert measures.repetition([[7] * 8]) == 4 / 5
    assert measures.repetition([[7] * 8, [1, 2, 3, 4]]) == 2 / 5
    assert measures.repetition([[1, 2]]) is None


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=6), st.integers(1, 2))
def test_saying_everything_twice_halves_distinct(completions: list[list[int]], n: int) -> None:
    once, twice = measures.distinct(completions, n), measures.distinct(completions * 2, n)
    assert twice == (None if once is None else pytest.approx(once / 2))
