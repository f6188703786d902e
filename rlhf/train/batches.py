"""The rows of a supervised stage as microbatches: what each rank trains on at each step, and what it evaluates on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.losses import LossOutput
from rlhf.recipe.schema import TrainRecipe
from rlhf.recipe.sections import TrainingSection
from rlhf.tokens.sampler import Sampler
from rlhf.tokens.segments import Segment, SegmentBatch, collate
from rlhf.tokens.store import Segments
from rlhf.train.loop import Microbatch, Stage
from rlhf.train.setup import Setup


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
            lengths=segments.lengths if isinstance(segments, Segments) else [s.num_tokens for s in segments],
            batch_size=training.per_device_train_batch_size,
            max_tokens=training.max_tokens_per_batch,
            seed=seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            accumulation=training.gradient_accumulation_steps,
        )
        self.total_steps = training.max_steps or self._sampler.total_steps(training.num_train_epochs)

    def window(self, step: int) -> list[Microbatch]:
        """This rank's microbatches of one optimizer step."""
        return [self._microbatch(rows) for rows in self._sampler.window(step)]

    def _microbatch(self, rows: Sequence[int]) -> Microbatch:
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

    def evaluate(self, stage: Stage, module: nn.Module) -> dict[str, float]:
        """The stage's own metrics, averaged as its loss is; the unwrapped module, since ranks may hold unequal rows."""
        if not len(self._segments):
            return {}
        device = self._accelerator.device
        if self._count is None:
            self._count = float(sum(stage.count(batch) for batch in self.batches()))
        count = torch.tensor(self._count, device=device)
        count = self._accelerator.reduce(count, "sum").clamp(min=1)
        bare = self._accelerator.unwrap_model(module)
        totals: dict[str, torch.Tensor] = {}
        for batch in self.batches():
            for name, value in stage.forward_loss(bare, batch.to(device), count).metrics.items():
                totals[name] = totals.get(name, torch.zeros((), device=device)) + value
        shares = self._accelerator.gather_for_metrics(
            [{n: float(v) for n, v in totals.items()}], use_gather_object=True
        )
        return {name: sum(share.get(name, 0.0) for share in shares) for name in sorted({n for s in shares for n in s})}


class Supervised(ABC):
    """What the stages that learn from given rows share: a step is one optimizer step over one window of them."""

    def __init__(self, module: nn.Module, recipe: TrainRecipe, setup: Setup, *, score_prompt: bool = False) -> None:
        training, accelerator = recipe.training, setup.accelerator
        self.module = module
        self.batches = Batches(setup.train, training, accelerator, seed=recipe.seed, score_prompt=score_prompt)
        self.held_out = HeldOut(setup.held_out, training, accelerator, score_prompt=score_prompt)
        self.total_steps = self.batches.total_steps
        self.metrics: dict[str, float] = {}

    def updates(self, step: int) -> Iterator[list[Microbatch]]:
        yield self.batches.window(step)

    @abstractmethod
    def count(self, batch: SegmentBatch) -> float: ...

    @abstractmethod
    def forward_loss(self, module: nn.Module, batch: SegmentBatch, count: Tensor) -> LossOutput: ...

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        return self.held_out.evaluate(self, module)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Nothing beside the parameters."""
