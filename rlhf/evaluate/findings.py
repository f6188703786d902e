"""What a report shows, in sentences: what got better, and beside it what got worse. Of one evaluation, or of several runs of one recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf.evaluate import measures

Model = Mapping[str, Any]  # one of `models` in report.json
Report = Mapping[str, Any]
MORE_REPEATED = 0.05  # of all 4-grams: from here on loops can be seen in the texts
LESS_VARIED = 0.8  # of the reference's share of different 2-grams


def findings(models: Sequence[Model], judge: str) -> list[str]:
    """For each model after the first: what `judge` proves about it, how far it went, and what it paid for that."""
    return [f"{_verdict(model, models[0], judge)}{_worse(model, models[0], judge)}" for model in models[1:]]


def findings_of_runs(reports: Sequence[Report]) -> list[str]:
    """The same over several runs, whose spread is part of the uncertainty: seeds differ more than one run's interval says.

    Every report must have the same models and the same first judge (`spread.check_alike`).
    """
    judge, names = reports[0]["scorers"][0], [model["name"] for model in reports[0]["models"]]
    sentences = []
    for i, name in enumerate(names[1:], 1):
        own = [report["models"][i] for report in reports]
        differences = [model["scores"][judge]["difference"] for model in own]
        over = measures.mean([d["value"] for d in differences])
        assert over.low is not None and over.high is not None
        claim = "better than" if over.low > 0 else "worse than" if over.high < 0 else "not shown to differ from"
        better = sum(d["low"] > 0 for d in differences)
        ends = [model["eos_rate"]["value"] for model in own]
        before = [report["models"][0]["eos_rate"]["value"] for report in reports]
        sentences.append(
            f"{name} is {claim} {names[0]} over {len(reports)} runs by {judge}: {over.value:+.2f} (95% interval over the runs "
            f"{over.low:+.2f} to {over.high:+.2f}); better beyond its own interval in {better} of them. "
            f"It ends {_range(ends)} of its texts by itself, {names[0]} {_range(before)}."
        )
    return sentences


def _verdict(model: Model, reference: Model, judge: str) -> str:
    rate, name, other = model["scores"][judge]["win_rate"], model["name"], reference["name"]
    if rate["low"] > 0.5:
        claim = f"{name} is better than {other}"
    elif rate["high"] < 0.5:
        claim = f"{name} is worse than {other}"
    else:
        claim = f"No difference between {name} and {other} is shown"
    kl = f", {model['kl']['value']:.2f} nats from it" if model["kl"] else ""
    return (
        f"{claim}: it wins {_percent(rate['value'])} of {rate['n']} prompts by {judge} "
        f"(95% interval {100 * rate['low']:.0f} to {_percent(rate['high'])}){kl}."
    )


def _worse(model: Model, reference: Model, judge: str) -> str:
    paid = list(_losses(model, reference, judge))
    return f" But {'; '.join(paid)}." if paid else ""


def _losses(model: Model, reference: Model, judge: str) -> Iterator[str]:
    """What is worse than the reference's beyond the intervals, where there are some."""
    name = reference["name"]
    if model["eos_rate"]["high"] < reference["eos_rate"]["low"]:
        yield f"it ends {_percent(model['eos_rate']['value'])} of its texts by itself, {name} {_percent(reference['eos_rate']['value'])}"
    for scorer, score in model["scores"].items():
        lower = score["difference"]["high"]
        if scorer != judge and lower is not None and lower < 0:
            yield f"{scorer} scores it {-score['difference']['value']:.2f} lower than {name}"
    for label, verdict in model["pair_judges"].items():
        if verdict["win_rate"]["high"] < 0.5:
            yield f"{label} prefers {name}: it wins {_percent(verdict['win_rate']['value'])}"
    if (model["repetition"] or 0.0) > (reference["repetition"] or 0.0) + MORE_REPEATED:
        own, theirs = _percent(model["repetition"]), _percent(reference["repetition"] or 0.0)
        yield f"{own} of its 4-grams repeat earlier ones, {name} {theirs}"
    if (model["distinct_2"] or 0.0) < LESS_VARIED * (reference["distinct_2"] or 0.0):
        yield f"it varies less: {_percent(model['distinct_2'] or 0.0)} of its 2-grams are different, {name} {_percent(reference['distinct_2'])}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _range(shares: Sequence[float]) -> str:
    low, high = min(shares), max(shares)
    return _percent(low) if _percent(low) == _percent(high) else f"{100 * low:.0f} to {_percent(high)}"
