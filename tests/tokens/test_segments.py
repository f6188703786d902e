"""The flat batch and its padded form say the same: what is scored, from where, at which position."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.tokens.segments import IGNORE_INDEX, Segment, collate, pad

_ids = st.lists(st.integers(0, 9), min_size=1, max_size=5)
_segments = st.lists(st.builds(Segment, _ids, st.lists(_ids, min_size=1, max_size=4)), min_size=1, max_size=4)


def test_the_example_of_the_docstring() -> None:
    batch = collate([Segment([7, 7, 7], [[1, 1], [2, 2, 2]], [1, 0], 0.5), Segment([8, 8], [[3, 3, 3]])])
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 3, 4]
    assert batch.targets.tolist() == [1, 1, 2, 2, 2, 3, 3, 3]
    assert batch.sources.tolist() == [2, 3, 2, 5, 6, 9, 10, 11], (
        "both branches' first tokens come from the prompt's last"
    )
    assert batch.rows.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert batch.last.tolist() == [4, 7, 12]
    assert batch.segments.tolist() == [0, 0, 1]
    assert batch.grades.tolist() == [1, 0, 0]
    assert batch.margins.tolist() == [0.5, 0]


@settings(deadline=None)
@given(_segments)
def test_flat_and_padded_agree(segments: list[Segment]) -> None:
    batch = collate(segments)
    padded = pad(batch, pad_token_id=0)  # 0 is a real token too: nothing may be told by its id
    pairs = [(s, c) for s in segments for c in s.completion_ids]
    assert batch.input_ids.numel() == sum(s.num_tokens for s in segments)
    assert padded.labels[padded.labels != IGNORE_INDEX].tolist() == batch.targets.tolist()
    assert batch.targets.tolist() == [t for _, c in pairs for t in c]
    for row, (segment, completion) in enumerate(pairs):
        ids = [*segment.prompt_ids, *completion]
        size = len(ids)
        assert padded.input_ids[row, :size].tolist() == ids
        assert padded.attention_mask[row].tolist() == [1] * size + [0] * (padded.input_ids.shape[1] - size)
        assert padded.position_ids[row, :size].tolist() == list(range(size))
        assert int(padded.last[row]) == size - 1
        assert padded.labels[row, : len(segment.prompt_ids)].eq(IGNORE_INDEX).all()
    for target, source, row in zip(batch.targets, batch.sources, batch.rows, strict=True):
        span = batch.spans[int(batch.segments[row])]
        at_prompts_end = int(source) == span.start + span.prompt - 1
        same_branch = int(source) + 1 <= int(batch.last[row]) and batch.input_ids[int(source) + 1] == target
        assert at_prompts_end or same_branch
        assert span.start <= int(source) < span.start + span.length


@given(_segments)
def test_rows_and_sums(segments: list[Segment]) -> None:
    batch = collate(segments)
    ones = torch.ones(batch.num_targets)
    assert batch.sum_rows(ones).tolist() == batch.lengths.tolist()
    assert batch.to_rows(batch.targets)[batch.mask].tolist() == batch.targets.tolist()


@given(st.lists(st.builds(Segment, _ids, st.tuples(_ids)), min_size=1, max_size=3))
def test_scoring_the_prompt_too(segments: list[Segment]) -> None:
    batch = collate(segments, score_prompt=True)
    assert batch.targets.tolist() == [t for s in segments for t in [*s.prompt_ids, *s.completion_ids[0]][1:]]
    assert batch.input_ids[batch.sources + 1].tolist() == batch.targets.tolist()
    padded = pad(batch, 0)
    assert padded.labels[padded.labels != IGNORE_INDEX].tolist() == batch.targets.tolist()


@pytest.mark.parametrize("parts", [([], [[1]]), ([1], []), ([1], [[1], []]), ([1], [[1]], [1, 0])])
def test_a_segment_without_tokens_is_refused(parts: tuple) -> None:
    with pytest.raises(ValueError):
        Segment(*parts)


def test_untrained_labels_are_what_transformers_ignores() -> None:
    assert IGNORE_INDEX == torch.nn.CrossEntropyLoss().ignore_index == -100


def test_completions_without_grades_all_have_grade_zero() -> None:
    assert collate([Segment([1], [[2], [3]]), Segment([1], [[2], [3]], [1, 0])]).grades.tolist() == [0, 0, 1, 0]


def test_a_batch_moves_with_all_its_tensors() -> None:
    batch = collate([Segment([7, 7], [[1], [2, 2]], [1, 0], 0.5)])
    moved = batch.to("meta")
    assert moved.spans == batch.spans
    assert all(value.is_meta for name, value in vars(moved).items() if isinstance(value, torch.Tensor))
