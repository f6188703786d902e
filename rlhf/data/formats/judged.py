"""Answers with somebody's judgement: UltraFeedback's scores, several annotators' votes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rlhf.data.formats import orders
from rlhf.data.formats.fields import Fields, Spec, distinct, shown
from rlhf.data.formats.instructions import instruction_prompt
from rlhf.data.formats.templates import ALPACA
from rlhf.data.rows import Row

_VOTE = re.compile(r"annotator\d+")
SCORES = ("overall_score", "fine-grained_score")  # in this order, then the mean of the annotations


def _ultrafeedback(f: Fields) -> Row:
    """A ranking by the first score that every completion has; `columns: {score: NAME}` names another."""
    completions = list(f.objects("completions"))
    if len(completions) < 2:
        raise f.error("completions", "needs two completions at least")
    texts = []
    for item in completions:
        text = item.get("response")
        if not isinstance(text, str) or not text.strip():
            raise f.error("completions", "is empty" if text in (None, "") or isinstance(text, str) else "must be text")
        texts.append(text)
    return {"prompt": f.text("instruction"), "completions": texts, "scores": _scores(f, completions)}


def _scores(f: Fields, completions: list[Mapping[str, Any]]) -> list[float]:
    name = f.columns.get("score")
    for candidate in (name,) if name else SCORES:
        values = [item.get(candidate) for item in completions]
        if candidate != "annotations" and all(v is not None for v in values):
            return orders.scores(f, values, len(values))
    if name not in (None, "annotations"):
        raise f.error("completions", f"has no {name} in each")
    return [_mean_rating(f, item) for item in completions]


def _mean_rating(f: Fields, item: Mapping[str, Any]) -> float:
    """The mean of the aspects' ratings; one that says N/A is no rating."""
    aspects = item.get("annotations")
    if not isinstance(aspects, dict):
        raise f.error("completions", f"holds neither {' nor '.join(SCORES)} nor annotations in each")
    given = [a.get("Rating", a.get("rating")) for a in aspects.values() if isinstance(a, dict)]
    ratings = [f.number("completions", r) for r in given if r not in (None, "N/A", "")]
    if not ratings:
        raise f.error("completions", "holds an answer without a rating")
    return sum(ratings) / len(ratings)


def _annotators(f: Fields) -> Row:
    """The answer that more than half of the votes name. `margin` is the difference of the two answers' shares of the votes."""
    first, second = f.text("response1"), f.text("response2")
    votes = Counter(_vote(f, name) for name in sorted(f.data) if _VOTE.fullmatch(name))
    total = votes.total()
    if not total:
        raise f.error("annotator1", "is missing")
    winner, most = votes.most_common(1)[0]
    if 2 * most <= total:
        raise f.located.error(f"no majority among the annotators: {dict(sorted(votes.items()))}")
    if winner == 0:
        raise f.located.error(f"the annotators call it a tie: {dict(sorted(votes.items()))}")
    chosen, rejected = (first, second) if winner == 1 else (second, first)
    prompt = f.text("prompt") if f.has("prompt") else instruction_prompt(f)
    margin = abs(votes[1] - votes[2]) / total
    return distinct(f, {"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": margin}, "response2")


def _vote(f: Fields, name: str) -> int:
    """1 or 2 for the better answer, 0 for a tie; CSV has it as text."""
    value = f.get(name)
    if isinstance(value, str) and value.strip() in ("0", "1", "2"):
        value = int(value)
    if isinstance(value, bool) or value not in (0, 1, 2):
        raise f.error(name, f"must be 1, 2 or 0 for a tie: {shown(value)}")
    return int(value)


def _has_responses(f: Fields) -> bool:
    items = f.data["completions"]
    return isinstance(items, list) and bool(items) and isinstance(items[0], dict) and "response" in items[0]


ULTRAFEEDBACK = Spec(_ultrafeedback, (("instruction", "completions"),), _has_responses, ("score",))
ANNOTATORS = Spec(
    _annotators,
    (("instruction", "response1", "response2", "annotator1"), ("prompt", "response1", "response2", "annotator1")),
    lambda f: True,
    ("input",),
    ("instruction", "input"),
    tuple(ALPACA),
)
