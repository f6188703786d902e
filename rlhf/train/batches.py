"""The rows of a supervised stage as microbatches: what each rank trains on at each step, and what it evaluates on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf.recipe.sections import TrainingSection
from rlhf.tokens.sampler import Sampler
from rlhf.tokens.segments import Segment, SegmentBatch, collate
from rlhf.tokens.store import Segments
from rlhf.train.loop import Microbatch
from rlhf.train.reference_cache import Referenced


class Batches:
    """Segments dealt out by a `Sampler`; `window(step)` needs nothing from earlier steps."""

    def __init__(
        self,
        segments: Sequence[Segment],
        training: TrainingSection,
        accelerator: Accelerator,
        *,
        seed: int,
        score_prompt: bool = False,
    ) -> None:
        self.segments = segments
        self._device = accelerator.device
        self._score_prompt = score_prompt
        self._sampler = Sampler(
            lengths=segments.lengths
            if isinstance(segments, Segments | Referenced)
            else [s.num_tokens for s in segments],
            batch_size=training.per_device_train_batch_size,
            max_tokens=training.max_tokens_per_batch,
            seed=seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            accumulation=training.gradient_accumulation_steps,
        )
        self.total_steps = training.max_steps or self._sampler.total_steps(training.num_train_epochs)

    def window(self, step: int) -> list[Microbatch[SegmentBatch]]:
        """This rank's microbatches of one optimizer step."""
        return [self._microbatch(rows) for rows in self._sampler.window(step)]

    def _microbatch(self, rows: Sequence[int]) -> Microbatch[SegmentBatch]:
        batch = collate([self.segments[i] for i in rows or [0]], score_prompt=self._score_prompt).to(self._device)
        return Microbatch(batch, tokens=batch.input_ids.numel() if rows else 0, idle=not rows)


class HeldOut:
    """The evaluation rows, in order, once."""

    def __init__(
        self,
        segments: Sequence[Segment],
        training: TrainingSection,
        accelerator: Accelerator,
        *,
        score_prompt: bool = False,
    ) -> None:
        self._accelerator, self._segments, self._score_prompt = accelerator, segments, score_prompt
        self._mine = range(accelerator.process_index, len(segments), accelerator.num_processes)
        self._size = training.per_device_eval_batch_size
        self._count: float | None = None

    def batches(self) -> Iterator[SegmentBatch]:
        """This rank's rows, a batch at a time."""
        for start in range(0, len(self._mine), self._size):
            rows = [self._segments[i] for i in self._mine[start : start + self._size]]
            yield collate(rows, score_prompt=self._score_prompt)

    def means(
        self, count_of: Callable[[SegmentBatch], float], metrics_of: Callable[[SegmentBatch, Tensor], dict[str, Tensor]]
    ) -> dict[str, float]:
        """Each metric's mean over all rows of all ranks, the same on every rank; empty where there are no rows.

        `count_of` says what the mean is over, `metrics_of` gives a batch's share of the means for that total count.
        """
        if not len(self._segments):
            return {}
        device = self._accelerator.device
        if self._count is None:
            self._count = float(sum(count_of(batch) for batch in self.batches()))
        count = torch.tensor(self._count, device=device)
        count = self._accelerator.reduce(count, "sum").clamp(min=1)
        totals: dict[str, Tensor] = {}
        for batch in self.batches():
            for name, value in metrics_of(batch.to(device), count).items():
                totals[name] = totals.get(name, torch.zeros((), device=device)) + value
        shares = self._accelerator.gather_for_metrics(
            [{n: float(v) for n, v in totals.items()}], use_gather_object=True
        )
        return {name: sum(share.get(name, 0.0) for share in shares) for name in sorted({n for s in shares for n in s})}
