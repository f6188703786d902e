"""The one loop under all four stages: microbatches -> loss -> backward -> clip -> guard -> step -> log -> checkpoint.

A stage gives the loop the microbatches of each optimizer step and their loss; the loop knows nothing of the method. In
the supervised stages a step is one optimizer step; in PPO a step is one iteration: rollouts, then several.

Normalisers are counted over the whole optimizer step, all microbatches of all ranks, before the first backward pass, so
gradient accumulation and world size do not change a loss.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.errors import CheckpointError, RlhfError
from rlhf.losses import LossOutput
from rlhf.models.policy import Policy
from rlhf.models.scalar import ScalarModel
from rlhf.recipe.training import TrainRecipe
from rlhf.train.checkpoint import Checkpoints
from rlhf.train.doctor import Doctor, stop_at
from rlhf.train.metrics import MetricsLog
from rlhf.train.optim import learning_rate, make_optimizer
from rlhf.train.saving import SaveTimes

B = TypeVar("B")  # a method's batch: SegmentBatch, or PPO's Experience


@dataclass(frozen=True)
class Microbatch(Generic[B]):
    """What one forward pass takes. `idle`: this rank ran out of rows, and only takes part in the gradient sync."""

    batch: B
    tokens: int
    idle: bool = False


@dataclass(frozen=True)
class Update(Generic[B]):
    """One optimizer step: this rank's microbatches, and what the stage has measured itself, the same on every rank."""

    microbatches: Sequence[Microbatch[B]]
    metrics: Mapping[str, float] = field(default_factory=dict)


class Stage(Protocol[B]):
    """What a training method is to the loop."""

    module: nn.Module  # everything that trains
    model: Policy | ScalarModel  # what `final/` holds
    total_steps: int

    def updates(self, step: int) -> Iterator[Update[B]]:
        """The optimizer steps of `step` (from 0)."""

    def count(self, batch: B) -> float:
        """What the loss is a mean over: the tokens or pairs of one microbatch."""

    def forward_loss(self, module: nn.Module, batch: B, count: Tensor) -> LossOutput:
        """The microbatch's share of the loss; `module` is `self.module`, perhaps wrapped for several processes."""

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Metrics on the held-out rows, the same on every rank; empty where there are none."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside parameters and optimizer, as JSON."""

    def load_state(self, state: dict[str, Any]) -> None: ...


def fit(
    stage: Stage[Any], recipe: TrainRecipe, checkpoints: Checkpoints, accelerator: Accelerator, title: str
) -> dict[str, float]:
    """Train `stage` to the end, from its newest whole checkpoint; returns the last step's metrics.

    Raises RlhfError when a loss or gradient is not finite, CheckpointError when no checkpoint can be used.
    """
    section = recipe.training
    optimizer = make_optimizer(stage.module, section)
    start = _resume(stage, optimizer, recipe, checkpoints, accelerator)
    module, optimizer = accelerator.prepare(stage.module, optimizer)
    log = MetricsLog(Path(recipe.output_dir), title, stage.total_steps, start, accelerator)
    saves = SaveTimes(recipe.checkpoint, accelerator, saved=start > 0)
    doctor = Doctor(stage.total_steps, log.lines())
    metrics: dict[str, float] = {}
    with log:
        if section.eval_steps and start == 0:
            log.write(0, _evaluate(stage, module))
        for step in range(start, stage.total_steps):
            began = time.perf_counter()
            rate = learning_rate(section, step, stage.total_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            metrics = _train_step(stage, module, optimizer, step, section.max_grad_norm, accelerator)
            seconds = time.perf_counter() - began
            metrics |= {"learning_rate": rate, "seconds": seconds, "tokens_per_second": metrics.pop("tokens") / seconds}
            last = step + 1 == stage.total_steps
            evaluated = section.eval_steps and ((step + 1) % section.eval_steps == 0 or last)
            if evaluated:
                metrics |= _evaluate(stage, module)
            if last or evaluated or (step + 1) % recipe.logging.logging_steps == 0:
                found = doctor.look(step + 1, metrics)
                log.write(step + 1, metrics, found)
                stop_at(found, recipe.doctor.halt)
            log.advance(step + 1, metrics)
            if saves.due(step + 1, last=last):
                checkpoints.save(step + 1, stage.module, optimizer, stage.state(), accelerator)
    return metrics


def _resume(
    stage: Stage[Any],
    optimizer: torch.optim.Optimizer,
    recipe: TrainRecipe,
    checkpoints: Checkpoints,
    accelerator: Accelerator,
) -> int:
    """Finished steps of the checkpoint that was put back, 0 for a fresh run."""
    if accelerator.is_main_process:
        checkpoints.sweep()
        if recipe.checkpoint.resume == "never":
            checkpoints.clear()
    accelerator.wait_for_everyone()
    path = checkpoints.newest(recipe.checkpoint.resume)
    if path is None:
        return 0
    step, state = checkpoints.load(path, stage.module, optimizer, accelerator)
    if step > stage.total_steps:
        raise CheckpointError(
            f"{path} is past this recipe's {stage.total_steps} steps; raise training.max_steps or num_train_epochs, name "
            "another checkpoint, or start afresh with checkpoint.resume=never"
        )
    if recipe.checkpoint.resume != "auto" and accelerator.is_main_process:
        checkpoints.abandon_after(step)
    accelerator.wait_for_everyone()
    stage.load_state(state)
    accelerator.print(f"resumed from {path}")
    return step


def _train_step(
    stage: Stage[Any],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    max_grad_norm: float | None,
    accelerator: Accelerator,
) -> dict[str, float]:
    """All optimizer steps of `step`; a metric is the mean over those that have it, and over all ranks."""
    module.train()
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
    made: Counter[str] = Counter()  # optimizer steps that have the metric
    measured: dict[str, float] = {}
    for update in stage.updates(step):
        microbatches = update.microbatches
        measured |= update.metrics
        live = [m for m in microbatches if not m.idle]
        count = _sum_over_ranks(float(sum(stage.count(m.batch) for m in live)), accelerator).clamp(min=1)
        names = {"grad_norm"}
        for i, microbatch in enumerate(microbatches):
            sync = accelerator.no_sync(module) if i + 1 < len(microbatches) else nullcontext()
            with sync:
                output = stage.forward_loss(module, microbatch.batch, count)
                # DDP averages gradients over ranks; the loss is already a share of the global mean
                accelerator.backward(output.loss * (0.0 if microbatch.idle else accelerator.num_processes))
            for name, value in output.metrics.items():
                sums[name] += torch.zeros_like(value) if microbatch.idle else value
            sums["tokens"] += microbatch.tokens
            names.update(output.metrics)
        made.update(names)
        sums["grad_norm"] += _clip(module, max_grad_norm, accelerator) / accelerator.num_processes
        _guard_finite(sums, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    measures = sorted(sums)
    totals = accelerator.reduce(torch.stack([sums[name].float() for name in measures]), "sum").tolist()
    means = {name: total / made.get(name, 1) for name, total in zip(measures, totals, strict=True)}
    return means | measured


def _clip(module: nn.Module, max_grad_norm: float | None, accelerator: Accelerator) -> Tensor:
    norm = accelerator.clip_grad_norm_(module.parameters(), float("inf") if max_grad_norm is None else max_grad_norm)
    return torch.as_tensor(norm, device=accelerator.device)


def _guard_finite(sums: dict[str, Tensor], step: int) -> None:
    bad = [name for name in ("loss", "grad_norm") if name in sums and not bool(torch.isfinite(sums[name]))]
    if bad:
        raise RlhfError(
            f"step {step + 1}: {' and '.join(bad)} not finite; this update was not made. Lower training.learning_rate, "
            "set training.max_grad_norm, or look at this batch with: rlhf inspect"
        )


def _evaluate(stage: Stage[Any], module: nn.Module) -> dict[str, float]:
    module.eval()
    with torch.no_grad():
        return {f"eval/{name}": value for name, value in stage.evaluate(module).items()}


def _sum_over_ranks(value: float, accelerator: Accelerator) -> Tensor:
    total: Tensor = accelerator.reduce(torch.tensor(value, dtype=torch.float32, device=accelerator.device), "sum")
    return total
