"""Rows' names: the same wherever the row stands, and never shared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.rows import Text
from rlhf.synthesis.naming import Names


@given(st.lists(st.sampled_from("abcd"), max_size=30))
def test_names_are_found_again_and_follow_their_prompts(prompts: list[str]) -> None:
    names = Names(prompts)
    given_names = [names.of(i) for i in range(len(prompts))]
    assert len(set(given_names)) == len(prompts)
    assert [names.position(name) for name in given_names] == list(range(len(prompts)))
    moved = sorted(prompts)
    again = Names(moved)
    of_prompt = {p: [n for n, q in zip(given_names, prompts, strict=True) if q == p] for p in prompts}
    for prompt in of_prompt:  # the first of its prompt is called the same, and so on
        assert [again.of(i) for i, q in enumerate(moved) if q == prompt] == of_prompt[prompt]


def test_a_name_of_no_row_and_what_is_no_name() -> None:
    messages: list[Text] = [[{"role": "user", "content": "x"}], "x"]
    names = Names(messages)
    assert names.of(0) != names.of(1)
    assert names.position("0" * 16) is None
    assert Names([]).position(names.of(0)) is None
    with pytest.raises(ValueError, match="invalid literal"):
        names.position("no name")
