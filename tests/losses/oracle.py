"""The losses and estimators once more: float64, plain Python loops, written from the papers' formulas.

Nothing here is shared with `rlhf.losses`, and nothing is vectorised or rearranged for speed: sums are written as sums,
cases as cases. Arrays are read element by element; a mask decides what is read at all, so padding cannot matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def log_sigmoid(x: float) -> float:
    """log(1 / (1 + exp(-x))), in the form that does not overflow."""
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def clip(x: float, low: float, high: float) -> float:
    if x < low:
        return low
    if x > high:
        return high
    return x


# Supervised fine-tuning


def token_nll(logits: Array, token: int) -> float:
    """-log softmax(logits)[token] of one position, logits: [V]."""
    largest = max(float(x) for x in logits)
    total = 0.0
    for x in logits:
        total += math.exp(float(x) - largest)
    return math.log(total) - (float(logits[token]) - largest)


def sft(logits: Array, tokens: Array, mask: Array, num_tokens: int) -> float:
    """The mean negative log-likelihood of the trained tokens. logits: [B, T, V]; tokens, mask: [B, T]."""
    total = 0.0
    for b in range(len(tokens)):
        for t in range(len(tokens[b])):
            if mask[b][t]:
                total += token_nll(logits[b][t], int(tokens[b][t]))
    return total / num_tokens


# Preferences


def reward_pairs(
    chosen: Sequence[float],
    rejected: Sequence[float],
    num_pairs: float,
    weights: Sequence[float] | None = None,
    margins: Sequence[float] | None = None,
    center: float = 0.0,
) -> dict[str, float]:
    """Bradley-Terry: the chance that `chosen` wins is sigmoid(r_w - r_l); Llama 2's margin and the centring term."""
    sums = {"loss": 0.0, "accuracy": 0.0, "margin": 0.0, "score/chosen": 0.0, "score/rejected": 0.0}
    for i in range(len(chosen)):
        win, lose = float(chosen[i]), float(rejected[i])
        weight = 1.0 if weights is None else float(weights[i])
        margin = 0.0 if margins is None else float(margins[i])
        sums["loss"] += weight * (-log_sigmoid(win - lose - margin) + center * (win + lose) * (win + lose))
        sums["accuracy"] += weight * (1.0 if win > lose else 0.0)
        sums["margin"] += weight * (win - lose)
        sums["score/chosen"] += weight * win
        sums["score/rejected"] += weight * lose
    return {name: total / num_pairs for name, total in sums.items()}


def compared(grades: Sequence[float]) -> list[tuple[int, int]]:
    """The (better, worse) pairs of one ranking: all K(K-1)/2 of them but the ties."""
    pairs = []
    for i in range(len(grades)):
        for j in range(i + 1, len(grades)):
            if grades[i] > grades[j]:
                pairs.append((i, j))
            elif grades[j] > grades[i]:
                pairs.append((j, i))
    return pairs


def reward_rankings(rankings: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, float]:
    """InstructGPT's loss, eq. 1: the mean over a prompt's pairs, then the mean over the prompts that have a pair.

    rankings: (scores, grades) of each prompt.
    """
    per_prompt = []
    for scores, grades in rankings:
        pairs = compared(grades)
        if pairs:
            chosen = [scores[better] for better, _ in pairs]
            rejected = [scores[worse] for _, worse in pairs]
            per_prompt.append(reward_pairs(chosen, rejected, len(pairs)))
    return {name: sum(prompt[name] for prompt in per_prompt) / len(per_prompt) for name in per_prompt[0]}


def dpo(
    chosen: Sequence[float],
    rejected: Sequence[float],
    ref_chosen: Sequence[float],
    ref_rejected: Sequence[float],
    beta: float,
    num_pairs: float,
    smoothing: float = 0.0,
    loss_type: str = "sigmoid",
) -> dict[str, float]:
    """DPO's eq. 7, with cDPO's smoothing the label is flipped with probability `smoothing`; SLiC's hinge; IPO's eq. 17."""
    sums = dict.fromkeys(("loss", "accuracy", "margin"), 0.0)
    sums |= {f"{name}/{side}": 0.0 for name in ("reward", "drift", "logprobs") for side in ("chosen", "rejected")}
    for i in range(len(chosen)):
        log_ratio_w = float(chosen[i]) - float(ref_chosen[i])
        log_ratio_l = float(rejected[i]) - float(ref_rejected[i])
        h = beta * log_ratio_w - beta * log_ratio_l
        if loss_type == "sigmoid":
            sums["loss"] += (1.0 - smoothing) * -log_sigmoid(h) + smoothing * -log_sigmoid(-h)
        elif loss_type == "hinge":
            sums["loss"] += 1.0 - h if h < 1.0 else 0.0
        else:
            sums["loss"] += ((log_ratio_w - log_ratio_l) - 1.0 / (2.0 * beta)) ** 2
        sums["accuracy"] += 1.0 if log_ratio_w > log_ratio_l else 0.0
        sums["margin"] += h
        sums["reward/chosen"] += beta * log_ratio_w
        sums["reward/rejected"] += beta * log_ratio_l
        sums["drift/chosen"] += log_ratio_w
        sums["drift/rejected"] += log_ratio_l
        sums["logprobs/chosen"] += float(chosen[i])
        sums["logprobs/rejected"] += float(rejected[i])
    return {name: total / num_pairs for name, total in sums.items()}


# From scores to advantages


def k1(logprobs: Array, ref_logprobs: Array) -> Array:
    """log(pi / pi_ref) of each sampled token."""
    out = np.zeros(logprobs.shape)
    for place in np.ndindex(*logprobs.shape):
        out[place] = float(logprobs[place]) - float(ref_logprobs[place])
    return out


def categorical_kl(p: Sequence[float], q: Sequence[float]) -> float:
    """KL(p || q) by its definition."""
    return math.fsum(pi * math.log(pi / qi) for pi, qi in zip(p, q, strict=True))


def token_rewards(scores: Array, kl: Array, mask: Array, kl_coef: float) -> Array:
    """-kl_coef * kl at each token; the score on top of it at the last one."""
    rewards = np.zeros(mask.shape)
    for m in range(mask.shape[0]):
        tokens = [t for t in range(mask.shape[1]) if mask[m, t]]
        for t in tokens:
            rewards[m, t] = -kl_coef * float(kl[m, t]) + (float(scores[m]) if t == tokens[-1] else 0.0)
    return rewards


def _episodes(mask: Array) -> list[tuple[int, list[int]]]:
    return [(m, [t for t in range(mask.shape[1]) if mask[m, t]]) for m in range(mask.shape[0])]


def advantages(rewards: Array, values: Array, mask: Array, gamma: float, lam: float) -> Array:
    """GAE's eq. 16: A_t = sum over l of (gamma lambda)^l delta_{t+l}; the value after the last token is zero."""
    out = np.zeros(mask.shape)
    for m, tokens in _episodes(mask):
        deltas = []
        for i, t in enumerate(tokens):
            following = float(values[m, tokens[i + 1]]) if i + 1 < len(tokens) else 0.0
            deltas.append(float(rewards[m, t]) + gamma * following - float(values[m, t]))
        for i, t in enumerate(tokens):
            out[m, t] = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(tokens)))
    return out


def lambda_returns(rewards: Array, values: Array, mask: Array, gamma: float, lam: float) -> Array:
    """The lambda-return (Sutton and Barto, eq. 12.3): (1 - lambda) sum_n lambda^{n-1} G_{t:t+n} + lambda^{T-t-1} G_t.

    What GAE's returns A + V must be, arrived at through n-step returns and without any advantage.
    """
    out = np.zeros(mask.shape)
    for m, tokens in _episodes(mask):
        length = len(tokens)
        for i in range(length):
            total = 0.0
            for n in range(1, length - i + 1):
                n_step = sum(gamma**k * float(rewards[m, tokens[i + k]]) for k in range(n))
                if i + n < length:
                    n_step += gamma**n * float(values[m, tokens[i + n]])
                    total += (1.0 - lam) * lam ** (n - 1) * n_step
                else:
                    total += lam ** (n - 1) * n_step
            out[m, tokens[i]] = total
    return out


def discounted_returns(rewards: Array, mask: Array, gamma: float) -> Array:
    """The Monte Carlo return: sum over l of gamma^l r_{t+l}."""
    out = np.zeros(mask.shape)
    for m, tokens in _episodes(mask):
        for i, t in enumerate(tokens):
            out[m, t] = sum(gamma ** (j - i) * float(rewards[m, tokens[j]]) for j in range(i, len(tokens)))
    return out


def moments(values: Array, mask: Array) -> tuple[float, float]:
    """Mean and unbiased variance; (0, 0) of nothing, variance 0 of one value."""
    kept = [float(values[place]) for place in np.ndindex(*mask.shape) if mask[place]]
    if not kept:
        return 0.0, 0.0
    mean = math.fsum(kept) / len(kept)
    if len(kept) == 1:
        return mean, 0.0
    return mean, math.fsum((x - mean) * (x - mean) for x in kept) / (len(kept) - 1)


def whiten(values: Array, mask: Array, mean: float, variance: float, shift_mean: bool = True) -> Array:
    out = np.zeros(mask.shape)
    for place in np.ndindex(*mask.shape):
        if mask[place]:
            standard = (float(values[place]) - mean) / math.sqrt(variance + 1e-8)
            out[place] = standard if shift_mean else standard + mean
    return out


# PPO


def policy(
    logprobs: Array, old_logprobs: Array, advantage: Array, mask: Array, cliprange: float, num_tokens: float
) -> dict[str, float]:
    """PPO's eq. 7, L = -E[min(rho A, clip(rho) A)], token by token."""
    sums = {"policy/loss": 0.0, "policy/clip_fraction": 0.0, "policy/approx_kl": 0.0, "policy/ratio": 0.0}
    for place in np.ndindex(*mask.shape):
        if mask[place]:
            log_ratio = float(logprobs[place]) - float(old_logprobs[place])
            ratio, a = math.exp(log_ratio), float(advantage[place])
            free, held = ratio * a, clip(ratio, 1.0 - cliprange, 1.0 + cliprange) * a
            sums["policy/loss"] -= free if free < held else held
            sums["policy/clip_fraction"] += 1.0 if held < free else 0.0
            sums["policy/approx_kl"] += log_ratio * log_ratio / 2.0
            sums["policy/ratio"] += ratio
    return {name: total / num_tokens for name, total in sums.items()}


def value(
    values: Array, old_values: Array, returns: Array, mask: Array, cliprange: float, num_tokens: float
) -> dict[str, float]:
    """Half the squared error, the larger of the free and the clipped prediction's."""
    sums = {"value/loss": 0.0, "value/clip_fraction": 0.0, "value/error": 0.0}
    for place in np.ndindex(*mask.shape):
        if mask[place]:
            v, old, target = float(values[place]), float(old_values[place]), float(returns[place])
            held = clip(v, old - cliprange, old + cliprange)
            free_error, held_error = (v - target) * (v - target), (held - target) * (held - target)
            sums["value/loss"] += (held_error if held_error > free_error else free_error) / 2.0
            sums["value/clip_fraction"] += 1.0 if held_error > free_error else 0.0
            sums["value/error"] += free_error
    return {name: total / num_tokens for name, total in sums.items()}


def missing_eos(scores: Sequence[float], ended: Sequence[bool], mode: str, value: float) -> list[float]:
    out = []
    for score, finished in zip(scores, ended, strict=True):
        if finished:
            out.append(float(score))
        elif mode == "replace":
            out.append(value)
        elif mode == "penalty":
            out.append(float(score) - value)
        else:
            raise ValueError(mode)
    return out


def adaptive_kl(coefficient: float, kls: Sequence[float], target: float, horizon: int, episodes: int) -> list[float]:
    """Ziegler et al., section 2.2: e = clip((KL - target) / target, -0.2, 0.2); beta *= 1 + e episodes / horizon."""
    out = []
    for kl in kls:
        error = clip((kl - target) / target, -0.2, 0.2)
        coefficient = coefficient * (1.0 + error * (episodes / horizon))
        out.append(coefficient)
    return out
