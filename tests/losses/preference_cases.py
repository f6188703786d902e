"""The family's losses with settings that tell them apart, and how the tests call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.losses import LossOutput, preference_loss
from tests.losses import preference_oracle
from tests.losses.support import Numbers, tensor

SETTINGS: dict[str, dict[str, float]] = {
    "sigmoid": {"beta": 0.3, "label_smoothing": 0.1},
    "robust": {"beta": 0.3, "label_smoothing": 0.2},
    "sigmoid_norm": {"beta": 3.0},
    "hinge": {"beta": 0.2},
    "ipo": {"beta": 0.3},
    "sppo_hard": {"beta": 0.2},
    "exo_pair": {"beta": 0.3, "label_smoothing": 0.05},
    "nca_pair": {"beta": 0.3},
    "bco_pair": {"beta": 0.3},
    "aot": {"beta": 0.3, "label_smoothing": 0.1},
    "aot_unpaired": {"beta": 0.3, "label_smoothing": 0.1},
    "apo_zero": {"beta": 0.3},
    "apo_down": {"beta": 0.3},
    "discopop": {"beta": 0.1, "discopop_tau": 0.3},
    "dpop": {"beta": 0.1, "dpop_lambda": 1.5},
    "simpo": {"beta": 2.5, "simpo_gamma": 0.7},
    "cpo": {"beta": 0.2},
    "orpo": {},
    "sft": {},
}
SORTED = ("aot", "aot_unpaired")
FREE = ("simpo", "cpo", "orpo", "sft")
WITH_REFERENCE = tuple(name for name in SETTINGS if name not in FREE)


def draw_six(draw: Numbers, count: int) -> list[np.ndarray]:
    """Policy and reference, chosen and rejected, some nats apart; then the lengths of both. All log-probabilities below zero."""
    ref = [-np.abs(draw(count, scale=10)) - 20 for _ in range(2)]
    policy = [-np.abs(side + draw(count, scale=6)) - 0.5 for side in ref]
    return [*policy, *ref, *(draw.rng.integers(3, 30, size=count).astype(float) for _ in range(2))]


def loss_of(
    weights: Mapping[str, float],
    six: Sequence[Any],
    settings: Mapping[str, float],
    num_pairs: int | Tensor | None = None,
    reference: bool = True,
) -> LossOutput:
    chosen, rejected, ref_chosen, ref_rejected, *lengths = (x if isinstance(x, Tensor) else tensor(x) for x in six)
    return preference_loss(
        losses=weights,
        settings={"beta": 1.0} | dict(settings),
        num_pairs=len(chosen) if num_pairs is None else num_pairs,
        chosen_logprobs=chosen,
        rejected_logprobs=rejected,
        chosen_lengths=lengths[0],
        rejected_lengths=lengths[1],
        reference=(ref_chosen, ref_rejected) if reference else None,
    )


def expected_loss(name: str, six: Sequence[np.ndarray], settings: Mapping[str, float], num_pairs: float) -> float:
    """The oracle's."""
    pairs = [[float(x[i]) for x in six] for i in range(len(six[0]))]
    oracle = getattr(preference_oracle, name)
    total = oracle(pairs, **settings) if name in SORTED else sum(oracle(pair, **settings) for pair in pairs)
    return float(total / num_pairs)


def alike(six: Sequence[np.ndarray]) -> list[Tensor]:
    """The policy at its reference."""
    return [tensor(six[i]) for i in (2, 3, 2, 3, 4, 5)]


def float32(*values: float, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, requires_grad=grad)
