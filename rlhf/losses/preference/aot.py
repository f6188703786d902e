"""Alignment by optimal transport (Melnyk et al. 2024, https://arxiv.org/abs/2406.05882): the chosen side's distribution is to lie
above the rejected side's, not each pair's margin above zero.

The values of the batch are sorted, and compared quantile by quantile. So the loss is one of the whole optimizer step, and must
be given all of its pairs at once: recipes with accumulation or several processes are refused.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def aot(
    *,
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Paired: u = log pi(y_w) - log pi(y_l) of all pairs against v = log pi_ref(y_w) - log pi_ref(y_l), both sorted, with
    d_i = beta (u_(i) - v_(i)): l_i = -(1 - e) s(d_i) - e s(-d_i), where e = `label_smoothing`.
    """
    policy, reference = chosen_logprobs - rejected_logprobs, ref_chosen_logprobs - ref_rejected_logprobs
    return _quantiles(policy, reference, beta, label_smoothing)


def aot_unpaired(
    *, chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """Unpaired: u = r_w of all pairs against v = r_l, both sorted; then as `aot`."""
    return _quantiles(chosen_logratios, rejected_logratios, beta, label_smoothing)


def _quantiles(higher: Tensor, lower: Tensor, beta: float, label_smoothing: float) -> Tensor:
    difference = beta * (higher.sort().values - lower.sort().values)
    return -(1 - label_smoothing) * logsigmoid(difference) - label_smoothing * logsigmoid(-difference)
