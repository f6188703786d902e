"""What is logged of preference pairs, whichever loss trains them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rlhf.losses.output import share_of_mean


def measures(pairs: Mapping[str, Tensor], beta: float, num_pairs: int | Tensor) -> dict[str, Tensor]:
    """Shares of the means over `num_pairs`; `pairs` by the names of `rlhf.losses.preference`, [P] each.

    With a reference: implicit rewards beta * log(pi / pi_ref) of both sides, their margin, how often it is positive, and how
    far the log-probabilities drifted from the reference: both sides may fall, and users should see it. Without one, margin
    and accuracy are those of the mean log-probability of a token.
    """

    def mean(values: Tensor) -> Tensor:
        return share_of_mean(values, num_pairs).detach()

    chosen, rejected = pairs["chosen_logprobs"], pairs["rejected_logprobs"]
    logprobs = {"logprobs/chosen": mean(chosen), "logprobs/rejected": mean(rejected)}
    if "chosen_logratios" not in pairs:
        margins = chosen / pairs["chosen_lengths"] - rejected / pairs["rejected_lengths"]
        return {"accuracy": mean((margins > 0).to(margins.dtype)), "margin": mean(margins)} | logprobs
    chosen_drift, rejected_drift = pairs["chosen_logratios"], pairs["rejected_logratios"]
    h = beta * (chosen_drift - rejected_drift)
    return {
        "accuracy": mean((h > 0).to(h.dtype)),
        "margin": mean(h),
        "reward/chosen": mean(beta * chosen_drift),
        "reward/rejected": mean(beta * rejected_drift),
        "drift/chosen": mean(chosen_drift),
        "drift/rejected": mean(rejected_drift),
    } | logprobs
