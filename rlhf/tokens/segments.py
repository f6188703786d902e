"""One shape for every batch: a prompt and its completions, laid end to end without padding.

A *segment* is one prompt with n completions as branches. Each branch sees the prompt and itself, and never another branch or
another segment. n = 1 is a demonstration, 2 a preference pair, K a ranking or a group of samples. A batch is a list of segments
in one flat row of tokens:

    tokens     p p p a a b b b | q q c c c        two segments: prompt p with branches a, b; prompt q with branch c
    positions  0 1 2 3 4 3 4 5 | 0 1 2 3 4        each branch starts at the position after its prompt
    scored     - - - a a b b b | - - c c c        every trained token; `sources` says which token predicts it

A completion may hold several turns of a conversation. What is not trained in it (the user's turns, for instance) is read, but not scored.

Stands between `dataset` (rows become `Segment`s) and `models` (a batch becomes log-probabilities or scalars). `pad` gives the padded
`[B, T]` form with one completion in each row. Models that cannot take segments use it, and tests compare the two forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Segment:
    """One prompt and its completions as token ids.

    `grades` says which completion is better (higher is better, equal is a tie): `[1, 0]` for a chosen/rejected pair,
    n - 1 ... 0 for a ranking, empty where nothing is compared. `margin` is a pair's known score difference. `untrained` holds, for each
    completion, the spans `(start, stop)` of its tokens that are not trained, in order; empty where every token is trained.
    `ref_logprobs` are a reference's, of the trained tokens in order, where they were computed beforehand.
    """

    prompt_ids: Sequence[int]
    completion_ids: Sequence[Sequence[int]]
    grades: Sequence[float] = ()
    margin: float | None = None
    untrained: Sequence[Sequence[tuple[int, int]]] = ()
    ref_logprobs: Sequence[float] | NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids or not self.completion_ids or not all(self.completion_ids):
            raise ValueError(
                "a segment needs a prompt of at least one token and completions of at least one token each"
            )
        if self.grades and len(self.grades) != len(self.completion_ids):
            raise ValueError(f"{len(self.grades)} grades for {len(self.completion_ids)} completions")
        if self.untrained and not all(any(self.trained(i)) for i in range(len(self.completion_ids))):
            raise ValueError("a completion needs at least one trained token")

    @property
    def num_tokens(self) -> int:
        """Tokens in the flat row: the prompt once, every completion once."""
        return len(self.prompt_ids) + sum(map(len, self.completion_ids))

    def trained(self, index: int) -> list[bool]:
        """Whether each token of a completion is trained."""
        trained = [True] * len(self.completion_ids[index])
        for start, stop in self.untrained[index] if self.untrained else ():
            trained[start:stop] = [False] * (stop - start)
        return trained


@dataclass(frozen=True)
class Span:
    """Where one segment lies in the flat row."""

    start: int
    prompt: int
    completions: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prompt + sum(self.completions)


@dataclass(frozen=True)
class SegmentBatch:
    """A flat batch. T tokens, S segments, M completions, N scored tokens (in order of completion, then position)."""

    input_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64
    targets: Tensor  # [N] int64: the scored tokens
    sources: Tensor  # [N] int64: index into T of the token that predicts each target
    rows: Tensor  # [N] int64: which completion each target belongs to
    last: Tensor  # [M] int64: index into T of each completion's last token
    segments: Tensor  # [M] int64: which segment each completion belongs to
    grades: Tensor  # [M] float32: higher is better within a segment; 0 where nothing is compared
    margins: Tensor  # [S] float32: 0 where unknown
    spans: tuple[Span, ...]
    ref_logprobs: Tensor | None = None  # [N] float32: of a reference, where every segment brings them

    @property
    def num_segments(self) -> int:
        return len(self.spans)

    @property
    def num_completions(self) -> int:
        return int(self.last.numel())

    @property
    def num_targets(self) -> int:
        return int(self.targets.numel())

    @cached_property
    def lengths(self) -> Tensor:
        """Scored tokens of each completion, [M]."""
        return torch.bincount(self.rows, minlength=self.num_completions)

    @cached_property
    def mask(self) -> Tensor:
        """True where `to_rows` holds a token, [M, C]."""
        longest = int(self.lengths.max())
        return torch.arange(longest, device=self.lengths.device) < self.lengths[:, None]

    def to_rows(self, values: Tensor) -> Tensor:
        """Per-token values [N] as one row for each completion [M, C], zero where there is no token."""
        out = values.new_zeros(self.mask.shape)
        return out.masked_scatter(self.mask, values)

    def sum_rows(self, values: Tensor) -> Tensor:
        """Per-token values [N] summed over each completion, [M]."""
        return values.new_zeros(self.num_completions).index_add(0, self.rows, values)

    def to(self, device: torch.device | str) -> SegmentBatch:
        tensors = ((f.name, getattr(self, f.name)) for f in fields(self))
        moved: dict[str, Any] = {name: value.to(device) for name, value in tensors if isinstance(value, Tensor)}
        return replace(self, **moved)


def collate(segments: Sequence[Segment], *, score_prompt: bool = False) -> SegmentBatch:
    """Lay segments end to end. `score_prompt` also scores each prompt's tokens except its first (n = 1 only)."""
    ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    sources: list[int] = []
    rows: list[int] = []
    last: list[int] = []
    owner: list[int] = []
    spans: list[Span] = []
    for s, segment in enumerate(segments):
        start, prompt = len(ids), len(segment.prompt_ids)
        spans.append(Span(start, prompt, tuple(map(len, segment.completion_ids))))
        ids += segment.prompt_ids
        positions += range(prompt)
        if score_prompt:
            if len(segment.completion_ids) != 1:
                raise ValueError("a prompt's tokens can be scored only if it has one completion")
            targets += segment.prompt_ids[1:]
            sources += range(start, start + prompt - 1)
            rows += [len(last)] * (prompt - 1)
        for i, completion in enumerate(segment.completion_ids):
            begin, length = len(ids), len(completion)
            ids += completion
            positions += range(prompt, prompt + length)
            before = [start + prompt - 1, *range(begin, begin + length - 1)]
            kept = segment.trained(i) if segment.untrained else [True] * length
            targets += compress(completion, kept)
            sources += compress(before, kept)
            rows += [len(last)] * sum(kept)
            last.append(begin + length - 1)
            owner.append(s)
    grades = [g for s in segments for g in (s.grades or [0.0] * len(s.completion_ids))]
    return SegmentBatch(
        input_ids=_long(ids),
        position_ids=_long(positions),
        targets=_long(targets),
        sources=_long(sources),
        rows=_long(rows),
        last=_long(last),
        segments=_long(owner),
        grades=torch.tensor(grades, dtype=torch.float32),
        margins=torch.tensor([s.margin or 0.0 for s in segments], dtype=torch.float32),
        spans=tuple(spans),
        ref_logprobs=_reference(segments),
    )


def _reference(segments: Sequence[Segment]) -> Tensor | None:
    brought = [s.ref_logprobs for s in segments if s.ref_logprobs is not None]
    return torch.tensor(np.concatenate(brought), dtype=torch.float32) if len(brought) == len(segments) else None


def _long(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


@dataclass(frozen=True)
class PaddedBatch:
    """The same batch with one completion in each row, padded on the right. B = completions, T = the longest row."""

    input_ids: Tensor  # [B, T] int64
    attention_mask: Tensor  # [B, T] int64: 1 on real tokens
    position_ids: Tensor  # [B, T] int64
    labels: Tensor  # [B, T] int64: the token itself where it is scored, -100 elsewhere
    last: Tensor  # [B] int64: column of the last real token


def pad(batch: SegmentBatch, pad_token_id: int) -> PaddedBatch:
    """One completion in each row, after its prompt. The labels are exactly the batch's scored tokens.

    `labels`, read row by row without -100, are `batch.targets` in their order.
    """
    rows: list[Tensor] = []
    for span in batch.spans:
        prompt = batch.input_ids[span.start : span.start + span.prompt]
        begin = span.start + span.prompt
        for length in span.completions:
            rows.append(torch.cat([prompt, batch.input_ids[begin : begin + length]]))
            begin += length
    sizes = torch.tensor([r.numel() for r in rows], device=batch.input_ids.device)
    width = int(sizes.max())
    mask = torch.arange(width, device=sizes.device) < sizes[:, None]
    labels = batch.input_ids.new_full((len(rows), width), IGNORE_INDEX)
    labels[batch.rows, batch.position_ids[batch.sources] + 1] = (
        batch.targets
    )  # a position in a branch is a column of its row
    return PaddedBatch(
        input_ids=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id),
        attention_mask=mask.long(),
        position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
        labels=labels,
        last=sizes - 1,
    )
