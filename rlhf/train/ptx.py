"""PPO-ptx: in each optimizer step, the likelihood of given rows beside the policy's own loss.

    L = L_policy + coef * -1/N sum_t log p(y_t | x, y_<t)        # N: trained tokens of the step's rows, all ranks

Ouyang et al. 2022 (https://arxiv.org/abs/2203.02155), section 3.5 and appendix C.4: it holds what the policy knew before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf.losses import LossOutput, sft_loss
from rlhf.models.actor_critic import ActorCritic
from rlhf.recipe.online_sections import PtxSection
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import SegmentBatch
from rlhf.train.batches import Batches
from rlhf.train.loop import Microbatch
from rlhf.train.ranks import Ranks
from rlhf.train.setup import Setup


@dataclass(frozen=True)
class GivenRows:
    """One microbatch of them."""

    batch: SegmentBatch
    num_tokens: Tensor  # trained tokens of the optimizer step's rows, over all microbatches and ranks


class Ptx:
    """The rows of each optimizer step, and their loss."""

    def __init__(self, section: PtxSection, recipe: TrainRecipe, setup: Setup, ranks: Ranks) -> None:
        self._coef, self._ranks = section.coef, ranks
        size, accumulation = section.microbatches(recipe.training.per_device_train_batch_size, ranks.count)
        training = recipe.training.model_copy(
            update={"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        )
        rows, whole = setup.given, section.loss_on == "all"
        self._batches = Batches(rows, training, setup.accelerator, seed=recipe.seed, score_prompt=whole)

    def microbatches(self, step: int) -> list[Microbatch[GivenRows]]:
        """This rank's rows of the optimizer step with this number, counted from the start of the run."""
        window = self._batches.window(step)
        trained = sum(m.batch.num_targets for m in window if not m.idle)
        total = self._ranks.sum(torch.tensor(float(trained))).clamp(min=1)
        return [Microbatch(GivenRows(m.batch, total), m.tokens, m.idle) for m in window]

    def loss(self, module: nn.Module, policy: nn.Module, rows: GivenRows) -> LossOutput:
        """`coef` times the loss of the rows. `module` is what trains, perhaps wrapped; `policy` the policy alone or with a critic."""
        only = {"values": False} if isinstance(policy, ActorCritic) else {}
        likelihood = sft_loss(logprobs=module(rows.batch, temperature=1.0, **only), num_tokens=rows.num_tokens).loss
        loss = self._coef * likelihood
        return LossOutput(loss, {"loss": loss.detach(), "ptx/loss": likelihood.detach()})
