"""DPO's family once more: float64, plain Python, one pair at a time, written from the papers' formulas.

Nothing here is shared with `rlhf.losses`. Each function gives one pair's loss (those of AOT, all pairs') from four summed
log-probabilities and two lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.losses.oracle import log_sigmoid

Pair = Sequence[float]  # chosen, rejected, the reference's of both, the lengths of both


def probability(x: float) -> float:
    """1 / (1 + exp(-x))."""
    return math.exp(log_sigmoid(x))


def rewards(pair: Pair, beta: float) -> tuple[float, float]:
    """beta log(pi / pi_ref) of chosen and rejected."""
    return beta * (pair[0] - pair[2]), beta * (pair[1] - pair[3])


def cross_entropy(margin: float, flipped: float = 0.0) -> float:
    """Of a label that is right with probability 1 - `flipped`."""
    return -(1.0 - flipped) * log_sigmoid(margin) - flipped * log_sigmoid(-margin)


def sigmoid(pair: Pair, beta: float, label_smoothing: float) -> float:
    w, l = rewards(pair, beta)  # noqa: E741
    return cross_entropy(w - l, label_smoothing)


def robust(pair: Pair, beta: float, label_smoothing: float) -> float:
    """[(1 - e) loss(w, l) - e loss(l, w)] / (1 - 2e)."""
    w, l = rewards(pair, beta)  # noqa: E741
    right, wrong = cross_entropy(w - l), cross_entropy(l - w)
    return ((1.0 - label_smoothing) * right - label_smoothing * wrong) / (1.0 - 2.0 * label_smoothing)


def sigmoid_norm(pair: Pair, beta: float) -> float:
    w, l = rewards(pair, beta)  # noqa: E741
    return cross_entropy(w / pair[4] - l / pair[5])


def hinge(pair: Pair, beta: float) -> float:
    w, l = rewards(pair, beta)  # noqa: E741
    return max(0.0, 1.0 - (w - l))


def ipo(pair: Pair, beta: float) -> float:
    """(log [pi(w) ref(l) / (pi(l) ref(w))] - 1 / (2 tau))^2."""
    return (pair[0] + pair[3] - pair[1] - pair[2] - 1.0 / (2.0 * beta)) ** 2


def sppo_hard(pair: Pair, beta: float) -> float:
    """Each log-ratio against (P - 1/2) / beta, P = 1 for the winner and 0 for the loser."""
    w, l = rewards(pair, 1.0)  # noqa: E741
    return (w - (1.0 - 0.5) / beta) ** 2 + (l - (0.0 - 0.5) / beta) ** 2


def exo_pair(pair: Pair, beta: float, label_smoothing: float) -> float:
    """KL(q || p) of two outcomes."""
    w, l = rewards(pair, beta)  # noqa: E741
    q = [math.exp(w) / (math.exp(w) + math.exp(l)), math.exp(l) / (math.exp(w) + math.exp(l))]
    p = [1.0 - label_smoothing, label_smoothing]
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(q, p, strict=True))


def nca_pair(pair: Pair, beta: float) -> float:
    w, l = rewards(pair, beta)  # noqa: E741
    return -log_sigmoid(w) - (log_sigmoid(-w) + log_sigmoid(-l)) / 2.0


def bco_pair(pair: Pair, beta: float) -> float:
    """The chosen is classified as good, the rejected as bad."""
    w, l = rewards(pair, beta)  # noqa: E741
    return cross_entropy(w) + cross_entropy(-l)


def apo_zero(pair: Pair, beta: float) -> float:
    w, l = rewards(pair, beta)  # noqa: E741
    return -probability(w) + 1.0 + probability(l)


def apo_down(pair: Pair, beta: float) -> float:
    w, l = rewards(pair, beta)  # noqa: E741
    return probability(w) + 1.0 - probability(w - l)


def discopop(pair: Pair, beta: float, discopop_tau: float) -> float:
    """A blend of the logistic and the exponential loss."""
    w, l = rewards(pair, beta)  # noqa: E741
    blend = probability((w - l) / discopop_tau)
    return (1.0 - blend) * cross_entropy(w - l) + blend * math.exp(-(w - l))


def dpop(pair: Pair, beta: float, dpop_lambda: float) -> float:
    w, l = rewards(pair, 1.0)  # noqa: E741
    penalty = pair[2] - pair[0] if pair[2] > pair[0] else 0.0
    return cross_entropy(beta * (w - l - dpop_lambda * penalty))


def simpo(pair: Pair, beta: float, simpo_gamma: float) -> float:
    return cross_entropy(beta * pair[0] / pair[4] - beta * pair[1] / pair[5] - simpo_gamma)


def cpo(pair: Pair, beta: float) -> float:
    return cross_entropy(beta * pair[0] - beta * pair[1])


def orpo(pair: Pair) -> float:
    """-log sigmoid(log [odds(w) / odds(l)]), of the geometric mean of the tokens' probabilities."""
    w, l = math.exp(pair[0] / pair[4]), math.exp(pair[1] / pair[5])  # noqa: E741
    return cross_entropy(math.log((w / (1.0 - w)) / (l / (1.0 - l))))


def sft(pair: Pair) -> float:
    return -pair[0] / pair[4]


def aot(pairs: Sequence[Pair], beta: float, label_smoothing: float) -> float:
    """The mean over quantiles; policy against reference."""
    u, v = sorted(p[0] - p[1] for p in pairs), sorted(p[2] - p[3] for p in pairs)
    return sum(cross_entropy(beta * (a - b), label_smoothing) for a, b in zip(u, v, strict=True))


def aot_unpaired(pairs: Sequence[Pair], beta: float, label_smoothing: float) -> float:
    """The mean over quantiles; chosen against rejected."""
    u, v = sorted(p[0] - p[2] for p in pairs), sorted(p[1] - p[3] for p in pairs)
    return sum(cross_entropy(beta * (a - b), label_smoothing) for a, b in zip(u, v, strict=True))
