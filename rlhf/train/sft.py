"""Supervised fine-tuning.

for each batch of demonstrations (x, y):
    L = -1/N sum_t log p(y_t | x, y_<t)        # N: trained tokens of the whole optimizer step
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..data.segments import SegmentBatch
from ..losses import LossOutput, sft_loss
from ..recipe.schema import SftRecipe
from .batches import Batches, HeldOut
from .loop import Microbatch
from .setup import Setup


class Sft:
    """Demonstrations in, a policy out. Documents never see each other, so a flat batch is packing without its faults."""

    def __init__(self, recipe: SftRecipe, setup: Setup) -> None:
        score_prompt = recipe.sft.loss_on == "all"
        self.module = setup.policy()
        self.batches = Batches(
            setup.train, recipe.training, setup.accelerator, seed=recipe.seed, score_prompt=score_prompt
        )
        self.held_out = HeldOut(setup.held_out, recipe.training, setup.accelerator, score_prompt=score_prompt)
        self.total_steps = self.batches.total_steps
        self.metrics: dict[str, float] = {}

    def updates(self, step: int) -> Iterator[list[Microbatch]]:
        yield self.batches.window(step)

    def count(self, batch: SegmentBatch) -> float:
        return batch.num_targets

    def forward_loss(self, module: nn.Module, batch: SegmentBatch, count: Tensor) -> LossOutput:
        return sft_loss(logprobs=module(batch), num_tokens=count)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        return self.held_out.evaluate(self, module)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing beside the parameters."""
