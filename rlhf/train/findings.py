"""What can be seen to go wrong in a run's metrics: one pure function a finding, over the lines that were logged so far.

Each gives the evidence in plain words, or None. It looks for the metrics that it needs, so a method that does not log them is never
asked. Thresholds are what one would call clear, not what one might notice: on a healthy run all of them are silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

Line = Mapping[str, float | None]  # one line of metrics.jsonl; null where a value was not finite
History = Sequence[Line]  # the lines in order, this one last

WINDOW = 5  # lines at the start, and lines at the end, that are compared: one line is noise
PATIENCE = 20  # lines in which DPO's loss or the value model must have moved


def first_ratio(history: History) -> str | None:
    """PPO's ratio is 1 by definition until the first update: both sides are the same policy on the same tokens."""
    gap = history[-1].get("policy/first_gap")
    if gap is None or gap <= 0.01:
        return None
    return f"before the first update of an iteration the probability ratios are {gap:.2g} away from 1 on average"


def negative_kl(history: History) -> str | None:
    """A KL is not negative. Its estimate over samples may be, by its standard error."""
    kl, error = _values(history, "kl"), _values(history, "kl_error")
    if len(kl) < WINDOW or len(error) < WINDOW:
        return None
    mean, allowed = fmean(kl[-WINDOW:]), 3 * math.sqrt(sum(e * e for e in error[-WINDOW:])) / WINDOW
    if mean >= -max(allowed, 0.02):
        return None
    return f"the measured KL is {mean:.2g} nats over the last {WINDOW} steps, three standard errors below 0"


def kl_blow_up(history: History) -> str | None:
    """10 nats a completion, or 0.3 a token, is another model; one that still moves away is lost."""
    kl, length = _values(history, "kl"), _values(history, "length")
    if len(kl) < 2 * WINDOW:
        return None
    before, now = fmean(kl[-2 * WINDOW : -WINDOW]), fmean(kl[-WINDOW:])
    a_token = now / max(fmean(length[-WINDOW:]), 1.0)
    if now <= 1.1 * before or (now <= 10.0 and a_token <= 0.3):
        return None
    return f"the KL to the reference is {now:.1f} nats a completion ({a_token:.2f} a token) and grows; {WINDOW} steps before it was {before:.1f}"


def ends_less(history: History) -> str | None:
    """A policy that learns not to end is paid for length, or for not being judged."""
    before, now = _change(history, "eos_rate")
    if before is None or now > 0.6 * before or before - now < 0.2:
        return None
    return f"{_percent(now)} of the samples end by themselves; at the start it was {_percent(before)}"


def rises_with_length(history: History) -> str | None:
    """The score goes up because texts get longer."""
    short, long = _change(history, "length")
    low, high = _change(history, "score")
    correlation = _values(history, "score_length_corr")  # of the whole way: at its end all texts may be equally long
    if short is None or low is None or long < 1.3 * short or high <= low or fmean(correlation) < 0.4:
        return None
    return (
        f"score and length rise together: {short:.0f} to {long:.0f} tokens, {low:.2f} to {high:.2f}, with a correlation of "
        f"{fmean(correlation):.2f} between the samples"
    )


def no_spread(history: History) -> str | None:
    """Advantages are differences of scores. Where samples all score the same there is nothing to learn."""
    before, now = _change(history, "score_std")
    alike = _values(history, "groups_alike")[-WINDOW:]
    if before is not None and now <= 0.1 * before:
        return f"the samples score nearly the same: their standard deviation is {now:.2g}, at the start it was {before:.2g}"
    if before is not None and len(alike) == WINDOW and fmean(alike) > 0.9:
        return f"in {_percent(fmean(alike))} of the prompts all samples score the same"
    return None


def value_explains_nothing(history: History) -> str | None:
    """An explained variance of 0 is what a constant would have."""
    explained = _values(history, "value/explained_variance")
    if len(explained) < PATIENCE or max(explained[-PATIENCE:]) > 0:
        return None
    return f"the value model explains nothing: its explained variance was not above 0 in the last {PATIENCE} steps ({explained[-1]:.2f} now)"


def entropy_collapse(history: History) -> str | None:
    """A policy that always says the same cannot find anything better."""
    before, now = _change(history, "entropy")
    if before is None or now > 0.2 * before:
        return None
    return f"the policy has lost its variety: {now:.2f} nats a token, at the start {before:.2f}"


def engine_gap(history: History) -> str | None:
    """What sampled is not what trains: it holds old adapters, or computes otherwise."""
    gaps = _values(history, "engine_gap")
    if not gaps or gaps[-1] <= 0.08:
        return None
    return f"the engine's log-probabilities are {gaps[-1]:.2g} nats a token away from the trainer's"


def chosen_falls(history: History) -> str | None:
    """DPO may widen the margin by making both completions unlikely (Pal et al. 2024, https://arxiv.org/abs/2402.13228)."""
    chosen, margin = _values(history, "reward/chosen"), _values(history, "margin")
    if len(chosen) < 2 * WINDOW:
        return None
    before, now = fmean(chosen[-2 * WINDOW : -WINDOW]), fmean(chosen[-WINDOW:])
    wider = fmean(margin[-WINDOW:])
    if now >= min(before, -1.0) or wider <= 0:
        return None
    return f"the chosen completions lose likelihood too: their reward is {now:.2f} and falls, while the margin is {wider:.2f}"


def stuck_at_log_2(history: History) -> str | None:
    """log 2 is DPO's loss before anything is learnt."""
    losses = [line["loss"] for line in history if "reward/chosen" in line and line.get("loss") is not None]
    recent = [loss for loss in losses[-PATIENCE:] if loss is not None]
    if len(recent) < PATIENCE or max(abs(loss - math.log(2)) for loss in recent) > 0.005:
        return None
    return f"the loss has stayed at log 2 = 0.693 for {PATIENCE} steps: nothing is learnt"


def overfits(history: History) -> str | None:
    """The held-out loss has left its best by a tenth in two evaluations, and the training loss fell meanwhile."""
    evaluations = [i for i, line in enumerate(history) if line.get("eval/loss") is not None and "loss" in line]
    if len(evaluations) < 3 or evaluations[-1] != len(history) - 1:
        return None
    losses = [float(history[i]["eval/loss"] or 0.0) for i in evaluations]
    best = min(range(len(losses)), key=losses.__getitem__)
    if len(losses) - best < 3 or min(losses[best + 1 :][-2:]) < 1.1 * losses[best]:
        return None
    at_best, now = (_around(history, evaluations[i]) for i in (best, -1))
    if now >= at_best:
        return None
    step = history[evaluations[best]]["step"]
    return (
        f"the held-out loss was best at step {step:g} ({losses[best]:.3f}) and is {losses[-1]:.3f} now, while the training loss fell "
        f"from {at_best:.3f} to {now:.3f}"
    )


def no_better_than_length(history: History) -> str | None:
    """At the end of a reward model's training: would counting tokens, or looking for the end, have done as well?"""
    line = history[-1]
    accuracy, longer, ends = (line.get(f"eval/{name}") for name in ("accuracy", "longer_wins", "ended_wins"))
    if not line.get("last") or accuracy is None or longer is None or ends is None:
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
    return f"the reward model is right in {_percent(accuracy)} of the held-out comparisons; to choose {rule} is right in {_percent(rules[rule])}"


Check = Callable[[History], str | None]
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


def _values(history: History, name: str) -> list[float]:
    return [value for line in history if (value := line.get(name)) is not None]


def _change(history: History, name: str) -> tuple[float | None, float]:
    """Means at the start and now; None at the start where there are too few lines to tell."""
    values = _values(history, name)
    if len(values) < 2 * WINDOW:
        return None, 0.0
    return fmean(values[:WINDOW]), fmean(values[-WINDOW:])


def _around(history: History, place: int) -> float:
    """The mean training loss of the lines up to a place."""
    return fmean(_values(history[max(0, place - WINDOW + 1) : place + 1], "loss"))


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"
