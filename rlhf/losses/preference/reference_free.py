"""Losses of the policy's own log-probabilities: no reference is loaded or run."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def simpo(
    *,
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    simpo_gamma: float,
) -> Tensor:
    """SimPO (Meng et al. 2024, https://arxiv.org/abs/2405.14734, eq. 6):
    l = -s(beta [log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|] - gamma).
    """
    return -logsigmoid(beta * (chosen_logprobs / chosen_lengths - rejected_logprobs / rejected_lengths) - simpo_gamma)


def cpo(*, chosen_logprobs: Tensor, rejected_logprobs: Tensor, beta: float) -> Tensor:
    """CPO's preference term (Xu et al. 2024, https://arxiv.org/abs/2401.08417, eq. 3):
    l = -s(beta [log pi(y_w|x) - log pi(y_l|x)]). The paper's loss is this plus `sft`.
    """
    return -logsigmoid(beta * (chosen_logprobs - rejected_logprobs))


def orpo(
    *, chosen_logprobs: Tensor, rejected_logprobs: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor
) -> Tensor:
    """ORPO's odds ratio (Hong et al. 2024, https://arxiv.org/abs/2403.07691, eq. 7): with a = log pi(y|x) / |y| and
    odds = exp(a) / (1 - exp(a)), l = -s(log odds_w - log odds_l). The paper's loss is `sft` plus lambda times this.
    """
    chosen, rejected = chosen_logprobs / chosen_lengths, rejected_logprobs / rejected_lengths
    return -logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logprobs: Tensor) -> Tensor:
    """log p - log(1 - p). Certainty (log p = 0) has no finite odds: it counts as one in a million short of it."""
    logprobs = logprobs.clamp(max=-1e-6)
    return logprobs - (-logprobs.expm1()).log()
