"""The optimizer and the learning rate, which is a function of the step alone: nothing of a schedule needs saving."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from rlhf.errors import RlhfError, SetupError
from rlhf.recipe.sections import TrainingSection


def make_optimizer(module: nn.Module, section: TrainingSection) -> torch.optim.Optimizer:
    """AdamW over the parameters that train; vectors (norms, biases) are not decayed."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise RlhfError("nothing to train: every parameter is frozen")
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": section.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    options: dict[str, Any] = {
        "lr": section.learning_rate,
        "betas": (section.adam_beta1, section.adam_beta2),
        "eps": section.adam_epsilon,
    }
    filled = [group for group in groups if group["params"]]
    if section.optim == "adamw":
        return torch.optim.AdamW(filled, **options)
    try:
        import bitsandbytes
    except ImportError as error:
        raise SetupError(f"training.optim: {section.optim} needs bitsandbytes; pip install 'rlhf[quant]'") from error
    optim: Any = bitsandbytes.optim
    kind = {"adamw_8bit": optim.AdamW8bit, "paged_adamw_8bit": optim.PagedAdamW8bit}
    return kind[section.optim](filled, **options)  # type: ignore[no-any-return]


def learning_rate(section: TrainingSection, step: int, total_steps: int) -> float:
    """The rate of the 0-based `step`: a linear warm-up over `warmup_steps`, then constant, linear or cosine to zero."""
    if step < section.warmup_steps:
        return section.learning_rate * (step + 1) / section.warmup_steps
    left = max(1, total_steps - section.warmup_steps)
    progress = min(1.0, (step - section.warmup_steps) / left)
    factor = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return section.learning_rate * factor[section.lr_scheduler_type]
