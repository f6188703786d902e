"""The losses of the family by the names that recipes use."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rlhf.losses.preference import (  # fmt: skip
    aot,
    apo,
    chosen,
    classified,
    discopop,
    dpop,
    exo,
    logistic,
    reference_free,
    slic,
    squared,
)

FUNCTIONS: tuple[Callable[..., Tensor], ...] = (
    logistic.sigmoid, logistic.robust, logistic.sigmoid_norm, slic.hinge, squared.ipo, squared.sppo_hard, exo.exo_pair,
    classified.nca_pair, classified.bco_pair, aot.aot, aot.aot_unpaired, apo.apo_zero, apo.apo_down, discopop.discopop,
    dpop.dpop, reference_free.simpo, reference_free.cpo, reference_free.orpo, chosen.sft,
)  # fmt: skip
LOSSES = {function.__name__: function for function in FUNCTIONS}
