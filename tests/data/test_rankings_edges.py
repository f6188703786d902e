"""Pairs of rankings at the edges: just as many pairs as allowed, ties beside larger margins, defaults."""

from __future__ import annotations

import pytest

from rlhf.data.rankings import MAX_PAIRS, NOT_DRAWN, Pairs, make_pairs, pairs_of
from rlhf.recipe.steps import PairsStep


def test_just_as_many_pairs_as_asked_are_left_alone() -> None:
    drawn = make_pairs(ranking=[2, 0, 1], strategy="random_k", k=3)
    assert len(drawn.kept) == drawn.candidates == 3 and NOT_DRAWN not in drawn.dropped
    all_of_them = make_pairs(scores=[3.0, 2.5, 0.0], max_pairs=3)
    assert [(p.better, p.worse) for p in all_of_them.kept] == [(0, 1), (0, 2), (1, 2)]  # not sorted by margin
    assert MAX_PAIRS not in all_of_them.dropped


def test_a_tie_is_the_smallest_margin() -> None:
    [pair] = make_pairs(scores=[1.0, 1.0, 0.5], ties="both", max_pairs=1).kept
    assert pair.margin == 0.5


def test_the_refusal_names_the_margin_that_was_asked() -> None:
    with pytest.raises(ValueError, match="min_margin needs scores"):
        make_pairs(ranking=[0, 1], min_margin=0.5)
    with pytest.raises(ValueError, match="max_margin needs scores"):
        make_pairs(ranking=[0, 1], max_margin=0.5)


def test_nothing_compared_has_no_candidates() -> None:
    assert Pairs([]).candidates == 0


def test_the_seed_is_zero_unless_given() -> None:
    step = PairsStep(strategy="random_k", k=2)
    row = {"prompt": "p", "completions": list("abcdef"), "ranking": [0, 1, 2, 3, 4, 5]}
    assert pairs_of(row, step) == pairs_of(row, step, seed=0)
    assert pairs_of(row, step) != pairs_of(row, step, seed=1)
