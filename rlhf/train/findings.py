"""What can be seen to go wrong in a run's metrics: one pure function a finding, over the lines that were logged so far.

Each gives its evidence, or None. It asks first for the metrics that it needs, so a method that does not log them is never judged by
them. The thresholds mark what is clear, not what one might notice: on a healthy run every check is silent. A check reads
the first lines and the last, so a long run costs no more than a short one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

# one line of metrics.jsonl; null where a value was not finite. `progress`: 1 at the last step
Line = Mapping[str, float | None]
History = Sequence[Line]  # the lines of training in order, this one last

WINDOW = 5  # lines at the start, and lines at the end, that are compared: one line is noise
PATIENCE = 20  # lines in which DPO's loss or the value model must have moved
RATIO_GAP = 0.01  # a twentieth of the usual clip range; rounding alone gives 0, because both sides are one computation
STANDARD_ERRORS = 3.0  # one window in 740 is further below 0 by chance
KL_NOTHING = 0.02  # nats: where nothing is learnt yet, the standard error is next to 0 and rounding is larger
KL_FAR = 10.0  # nats a completion; adaptive_kl aims at 6 (Ziegler et al. 2019, https://arxiv.org/abs/1909.08593)
KL_FAR_A_TOKEN = 0.3  # nats: the reference gives each token a quarter less than the policy does
GROWS = 1.1  # a tenth more than one window before
ENDS_KEPT = 0.6  # of what it was
ENDS_LOST = 0.2  # 20 of 100 samples are beyond the noise of a window
LONGER = 1.3
CORRELATED = 0.4  # of score and length: length alone then explains a sixth of the scores' variance
SPREAD_KEPT = 0.1
ALIKE = 0.9  # of the prompts
ENTROPY_KEPT = 0.2
# nats a token: rounding makes 0.00001 in float32, up to 0.06 in nf4, another base 0.8 (docs/rollouts.md)
ENGINE_GAP = 0.1
ENGINE_GROWS = 3.0  # times what it was: rounding does not grow, an old adapter's gap does
ENGINE_GREW = 0.02  # nats a token, at least
CHOSEN_LOST = -1.0  # beta times nats: at beta 0.1 the chosen completion is 10 nats less likely than it was
AT_LOG_2 = 0.005  # a margin of 0.01
TOO_EARLY = 0.2  # of the run: before, the learning rate may still be rising
HELD_OUT_WORSE = 1.1


class Evidence(NamedTuple):
    """The fault in plain words, with its numbers and steps, and how bad it is: twice as much is clearly worse."""

    text: str
    severity: float = 1.0


def first_ratio(history: History) -> Evidence | None:
    """PPO's ratio is 1 by definition until the first update: both sides are the same policy on the same tokens."""
    gap = history[-1].get("policy/first_gap")
    if gap is None or gap <= RATIO_GAP:
        return None
    return Evidence(
        f"before the first update of an iteration the probability ratios are {gap:.2g} away from 1 on average", gap
    )


def negative_kl(history: History) -> Evidence | None:
    """A KL is not negative. Its estimate over samples may be, by its standard error."""
    kl, errors = _last(history, "kl"), _last(history, "kl_error")
    if kl is None or errors is None:
        return None
    mean, error = fmean(kl), math.sqrt(sum(e * e for e in errors)) / WINDOW
    if mean >= -max(STANDARD_ERRORS * error, KL_NOTHING):
        return None
    return Evidence(
        f"the measured KL is {mean:.2g} nats in {_steps(history)}, with a standard error of {error:.2g}: a KL is never negative",
        -mean,
    )


def kl_blow_up(history: History) -> Evidence | None:
    """The policy is another model by now, and still moves away."""
    kl, length = _last(history, "kl", 2 * WINDOW), _last(history, "length")
    if kl is None or length is None:
        return None
    before, now = fmean(kl[:WINDOW]), fmean(kl[WINDOW:])
    a_token = now / max(fmean(length), 1.0)
    if now <= GROWS * before or (now <= KL_FAR and a_token <= KL_FAR_A_TOKEN):
        return None
    return Evidence(
        f"the KL to the reference is {now:.1f} nats a completion ({a_token:.2f} a token) in {_steps(history)} and grows; before, "
        f"in {_steps(history[:-WINDOW])}, it was {before:.1f}", now,
    )  # fmt: skip


def ends_less(history: History) -> Evidence | None:
    """A policy that learns not to end is paid for length, or for not being judged."""
    before, now = _change(history, "eos_rate")
    if before is None or now > ENDS_KEPT * before or before - now < ENDS_LOST:
        return None
    text = (
        f"{_percent(now)} of the samples end by themselves in {_steps(history)}; at the start it was {_percent(before)}"
    )
    return Evidence(text, before / max(now, 0.05))


def rises_with_length(history: History) -> Evidence | None:
    """The score goes up because texts get longer."""
    short, long = _change(history, "length")
    low, high = _change(history, "score")
    if short is None or low is None or long < LONGER * short or high <= low:
        return None
    # of the whole way: at its end all texts may be equally long
    correlation = fmean(value for line in history if (value := line.get("score_length_corr")) is not None)
    if correlation < CORRELATED:
        return None
    return Evidence(
        f"score and length rise together, {low:.2f} to {high:.2f} and {short:.0f} to {long:.0f} tokens from the start to "
        f"{_steps(history)}, with a correlation of {correlation:.2f} between the samples", long / short,
    )  # fmt: skip


def no_spread(history: History) -> Evidence | None:
    """Advantages are differences of scores. Where samples all score the same there is nothing to learn."""
    before, now = _change(history, "score_std")
    if before is not None and now <= SPREAD_KEPT * before:
        text = f"the samples score nearly the same: their standard deviation is {now:.2g} in {_steps(history)}, at the start it was {before:.2g}"
        return Evidence(text)
    alike = _last(history, "groups_alike")
    if before is not None and alike is not None and fmean(alike) > ALIKE:
        return Evidence(f"in {_percent(fmean(alike))} of the prompts of {_steps(history)} all samples score the same")
    return None


def value_explains_nothing(history: History) -> Evidence | None:
    """An explained variance of 0 is what a constant would have."""
    explained = _last(history, "value/explained_variance", PATIENCE)
    if explained is None or max(explained) > 0:
        return None
    mean = fmean(explained)
    text = f"the value model explains nothing: its explained variance was not above 0 in {_steps(history, PATIENCE)}, and {mean:.2f} on average"
    return Evidence(text, 1.0 - mean)


def entropy_collapse(history: History) -> Evidence | None:
    """A policy that always says the same cannot find anything better."""
    before, now = _change(history, "entropy")
    if before is None or now > ENTROPY_KEPT * before:
        return None
    text = f"the policy has lost its variety: {now:.2f} nats a token in {_steps(history)}, at the start {before:.2f}"
    return Evidence(text, before / max(now, 0.02))


def engine_gap(history: History) -> Evidence | None:
    """What sampled is not what trains: it holds old adapters, or computes otherwise."""
    gap, largest = history[-1].get("engine_gap"), history[-1].get("engine_gap_max")
    before, now = _change(history, "engine_gap")
    grew = before is not None and now > max(ENGINE_GROWS * before, ENGINE_GREW)
    if gap is None or (gap <= ENGINE_GAP and not grew):
        return None
    most = "" if largest is None else f", {largest:.2g} at most"
    since = f", at the start {before:.2g}" if before is not None and grew else ""
    return Evidence(
        f"the engine's log-probabilities are {gap:.2g} nats a token away from the trainer's{most}{since}", gap
    )


def chosen_falls(history: History) -> Evidence | None:
    """DPO may widen the margin by making both completions unlikely (Pal et al. 2024, https://arxiv.org/abs/2402.13228)."""
    chosen, margins = _last(history, "reward/chosen", 2 * WINDOW), _last(history, "margin")
    if chosen is None or margins is None:
        return None
    before, now, margin = fmean(chosen[:WINDOW]), fmean(chosen[WINDOW:]), fmean(margins)
    if now >= min(before, CHOSEN_LOST) or margin <= 0:
        return None
    return Evidence(
        f"the chosen completions lose likelihood too: their reward is {now:.2f} in {_steps(history)}, after {before:.2f}, and falls, "
        f"while the margin is {margin:.2f}", -now,
    )  # fmt: skip


def stuck_at_log_2(history: History) -> Evidence | None:
    """log 2 is DPO's loss before anything is learnt."""
    losses = _last(history, "loss", PATIENCE)
    early = (history[-1].get("progress") or 0.0) < TOO_EARLY
    if losses is None or early or "reward/chosen" not in history[-1]:
        return None
    if max(abs(loss - math.log(2)) for loss in losses) > AT_LOG_2:
        return None
    return Evidence(f"the loss has stayed at log 2 = 0.693 in {_steps(history, PATIENCE)}: nothing is learnt")


def overfits(history: History) -> Evidence | None:
    """The held-out loss has left its best by a tenth in two evaluations, and the training loss fell meanwhile."""
    if history[-1].get("eval/loss") is None:
        return None
    evaluated = [(i, loss) for i, line in enumerate(history) if (loss := line.get("eval/loss")) is not None]
    best, lowest = min(evaluated, key=lambda found: found[1])
    since = [loss for i, loss in evaluated if i > best]
    if len(since) < 2 or min(since[-2:]) < HELD_OUT_WORSE * lowest:
        return None
    at_best = _last(history[: best + 1], "loss", min(WINDOW, best + 1))
    now = _last(history, "loss", min(WINDOW, len(history) - best - 1))
    if at_best is None or now is None or fmean(now) >= fmean(at_best):
        return None
    return Evidence(
        f"the held-out loss was best at step {history[best]['step']:g} ({lowest:.3f}) and is {since[-1]:.3f} at step "
        f"{history[-1]['step']:g}, while the training loss fell from {fmean(at_best):.3f} to {fmean(now):.3f}", since[-1] / lowest,
    )  # fmt: skip


def no_better_than_length(history: History) -> Evidence | None:
    """At the end of a reward model's training: would counting tokens, or looking for the end, have done as well?"""
    line = history[-1]
    accuracy, longer, ends = (line.get(f"eval/{name}") for name in ("accuracy", "longer_wins", "ended_wins"))
    if line.get("progress") != 1.0 or accuracy is None or longer is None or ends is None:
        return None
    rules = {
        "the longer one": longer,
        "the shorter one": 1 - longer,
        "the one that ends": ends,
        "the one that does not end": 1 - ends,
    }
    rule = max(rules, key=rules.__getitem__)
    if accuracy > rules[rule]:
        return None
    return Evidence(
        f"the reward model is right in {_percent(accuracy)} of the held-out comparisons; to choose {rule} is right in {_percent(rules[rule])}"
    )


Check = Callable[[History], Evidence | None]
CHECKS: dict[str, tuple[Check, str]] = {
    "first_ratio": (first_ratio, "The numbers of sampling and training come from different functions; report it, or use model.batching: padded"),
    "negative_kl": (negative_kl, "The samples are not the policy's own: look for a logits processor, a changed model or an engine that is behind"),
    "kl_blow_up": (kl_blow_up, "Raise kl_coef, lower training.learning_rate or set target_kl; read the samples"),
    "ends_less": (ends_less, "Set missing_eos (a penalty), or raise max_new_tokens if texts are cut; see whether the reward model likes texts without an end"),
    "rises_with_length": (rises_with_length, "Look at the reward model's length bias, take something off for length, or raise kl_coef"),
    "no_spread": (no_spread, "Raise sampling.temperature or sampling.n, or choose prompts and rewards that tell samples apart"),
    "value_explains_nothing": (value_explains_nothing, "Set ppo.value_warmup_steps, start from a reward model (ppo.value_model), or train without a value model: method: rloo"),
    "entropy_collapse": (entropy_collapse, "Raise kl_coef or sampling.temperature, lower training.learning_rate"),
    "engine_gap": (engine_gap, "See that the engine serves this base in this precision, with the newest adapter"),
    "chosen_falls": (chosen_falls, "Lower training.learning_rate or raise dpo.beta; train SFT on the chosen completions first"),
    "stuck_at_log_2": (stuck_at_log_2, "Raise training.learning_rate; see that chosen and rejected differ (rlhf inspect)"),
    "overfits": (overfits, "Stop earlier (training.max_steps), take fewer epochs or more rows"),
    "no_better_than_length": (no_better_than_length, "Do not optimise against it: take more pairs, or pairs of like length (rlhf data stats shows them)"),
}  # fmt: skip


def _last(history: History, name: str, count: int = WINDOW) -> list[float] | None:
    """A metric in the last lines; None where it is not in all of them, or there are too few."""
    values = [value for line in history[-count:] if (value := line.get(name)) is not None]
    return values if len(values) == count else None


def _change(history: History, name: str) -> tuple[float | None, float]:
    """Means at the start and now; None at the start where there are too few lines to tell."""
    start, now = _last(history[:WINDOW], name), _last(history, name)
    if len(history) < 2 * WINDOW or start is None or now is None:
        return None, 0.0
    return fmean(start), fmean(now)


def _steps(history: History, count: int = WINDOW) -> str:
    """The steps of the last lines, as a reader finds them in the curves."""
    return f"steps {history[-count]['step']:g} to {history[-1]['step']:g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"
