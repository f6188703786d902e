"""What the methods that learn from given rows share: a step is one optimizer step over one window of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from rlhf.losses import LossOutput
from rlhf.models.policy import Policy
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import SegmentBatch
from rlhf.train.batches import Batches, HeldOut
from rlhf.train.loop import Update
from rlhf.train.setup import Setup


class Supervised(ABC):
    """A stage whose subclass says what the loss is, and what it is a mean over."""

    def __init__(self, model: Policy | ScalarModel, recipe: TrainRecipe, setup: Setup) -> None:
        training, accelerator, trains_prompt = recipe.training, setup.accelerator, recipe.trains_prompt
        self.module = self.model = model
        self._accelerator = accelerator
        self._batches = Batches(setup.train, training, accelerator, seed=recipe.seed, score_prompt=trains_prompt)
        self._held_out = HeldOut(setup.held_out, training, accelerator, score_prompt=trains_prompt)
        self.total_steps = self._batches.total_steps

    def updates(self, step: int) -> Iterator[Update[SegmentBatch]]:
        yield Update(self._batches.window(step))

    @abstractmethod
    def count(self, batch: SegmentBatch) -> float: ...

    @abstractmethod
    def forward_loss(self, module: nn.Module, batch: SegmentBatch, count: Tensor) -> LossOutput: ...

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        bare = self._accelerator.unwrap_model(
            module
        )  # ranks may hold unequal rows, so no gradient sync may be waited for
        return self._held_out.means(self.count, lambda batch, count: self.forward_loss(bare, batch, count).metrics)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Nothing beside the parameters."""
