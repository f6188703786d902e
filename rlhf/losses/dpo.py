"""Direct preference optimisation (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.losses.output import LossOutput, share_of_mean


def dpo_loss(
    *,
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    beta: float,
    num_pairs: int | Tensor,
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
) -> LossOutput:
    """L = 1/P sum_i l(h_i), with the pair's reward margin
    h = beta [(log pi(y_w|x) - log pi_ref(y_w|x)) - (log pi(y_l|x) - log pi_ref(y_l|x))]  and, by `loss_type`,

    sigmoid  l = -(1 - e) log sigmoid(h) - e log sigmoid(-h)   DPO, eq. 7; e is cDPO's label smoothing
    hinge    l = max(0, 1 - h)                                 SLiC, https://arxiv.org/abs/2305.10425, eq. 2
    ipo      l = (h / beta - 1 / (2 beta))^2                   IPO, https://arxiv.org/abs/2310.12036, eq. 17

    The four log-probabilities are summed over each completion's tokens, [P]. num_pairs: pairs in the whole optimizer
    step. Logged: implicit rewards beta * log(pi / pi_ref) of both sides, their margin, how often it is positive, and how
    far the log-probabilities drifted from the reference: DPO may lower both sides, and users should see it.
    """
    chosen_drift = chosen_logprobs - ref_chosen_logprobs
    rejected_drift = rejected_logprobs - ref_rejected_logprobs
    h = beta * (chosen_drift - rejected_drift)
    if loss_type == "sigmoid":
        losses = -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)
    elif loss_type == "hinge":
        losses = (1 - h).relu()
    else:
        losses = ((h - 0.5) / beta) ** 2
    loss = share_of_mean(losses, num_pairs)

    def mean(values: Tensor) -> Tensor:
        return share_of_mean(values, num_pairs).detach()

    return LossOutput(
        loss,
        {
            "loss": loss.detach(),
            "accuracy": mean((h > 0).to(h.dtype)),
            "margin": mean(h),
            "reward/chosen": mean(beta * chosen_drift),
            "reward/rejected": mean(beta * rejected_drift),
            "drift/chosen": mean(chosen_drift),
            "drift/rejected": mean(rejected_drift),
            "logprobs/chosen": mean(chosen_logprobs),
            "logprobs/rejected": mean(rejected_logprobs),
        },
    )
