"""`auto` for `model.dtype` and `training.bf16`: bfloat16 where the processor multiplies it, float32 where it would only imitate it.

A CPU without bfloat16 instructions takes some thirty times as long in bfloat16 as in float32.
"""

from __future__ import annotations

from typing import TypeVar

import torch

from rlhf.recipe.sections import Precision, PrecisionOrAuto
from rlhf.recipe.training import TrainRecipe

R = TypeVar("R", bound=TrainRecipe)

SLOW = (
    "warning: this CPU has no instructions for bfloat16, so the run will be many times slower than in float32; "
    "write model.dtype: auto and training.bf16: auto"
)


def has_bf16(device: torch.device | str) -> bool:
    """Whether the device has instructions for bfloat16."""
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def settled(dtype: PrecisionOrAuto, device: torch.device | str) -> Precision:
    """The dtype that is meant."""
    return dtype if dtype != "auto" else "bfloat16" if has_bf16(device) else "float32"


def with_precision(recipe: R, device: torch.device | str) -> R:
    """The recipe with `auto` settled. Called once, before a recipe is carried out: a resumed run on another machine must not change
    its precision without being told.
    """
    model, training = recipe.model, recipe.training
    model = model.model_copy(update={"dtype": settled(model.dtype, device)})
    if training.bf16 == "auto":
        training = training.model_copy(update={"bf16": has_bf16(device)})
    return recipe.model_copy(update={"model": model, "training": training})


def warning_for(recipe: TrainRecipe, device: torch.device | str) -> str | None:
    """What to say of a recipe that asks a CPU for what it can only imitate; None for others."""
    asks = recipe.training.bf16 is True or recipe.model.dtype == "bfloat16"
    return SLOW if asks and torch.device(device).type == "cpu" and not has_bf16(device) else None
