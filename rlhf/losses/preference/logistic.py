"""The logistic losses of a pair's margin: DPO, and what makes it bear wrong labels or unlike lengths."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def sigmoid(
    *, chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """DPO (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7): l = -s(h).

    With `label_smoothing` e it is cDPO (Mitchell 2023, https://ericmitchell.ai/cdpo.pdf): l = -(1 - e) s(h) - e s(-h).
    """
    h = beta * (chosen_logratios - rejected_logratios)
    return -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)


def robust(*, chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409): where a label is wrong with probability
    e = `label_smoothing`, the mean of l = [-(1 - e) s(h) + e s(-h)] / (1 - 2e) is that of DPO under true labels.
    """
    h = beta * (chosen_logratios - rejected_logratios)
    return (-(1 - label_smoothing) * logsigmoid(h) + label_smoothing * logsigmoid(-h)) / (1 - 2 * label_smoothing)


def sigmoid_norm(
    *,
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
) -> Tensor:
    """Length-normalised DPO (Lambert et al. 2024, Tulu 3, https://arxiv.org/abs/2411.15124):
    l = -s(beta [r_w / |y_w| - r_l / |y_l|]).
    """
    return -logsigmoid(beta * (chosen_logratios / chosen_lengths - rejected_logratios / rejected_lengths))
