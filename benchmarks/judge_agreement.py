"""How well a judge agrees with people: on pairs that people have voted on, beside how well the people agree with each other.

Any judge of `judge` or `score` can be measured before it is trusted with data. A verdict that could not be read is a wrong answer and
stands as a category of its own in kappa: a judge must not gain by keeping silent. Used by benchmarks/agreement.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from rlhf.data.load import Stream
from rlhf.data.rows import Quarantine, Text, grades_of
from rlhf.data.sources import read
from rlhf.errors import DataError
from rlhf.generation.text_engine import TextEngine
from rlhf.recipe.sections import SourceSection
from rlhf.synthesis.answering import content
from rlhf.synthesis.functions import judge

Vote = Literal["first", "second", "tie", "none"]
_PANDALM: dict[int, Vote] = {0: "tie", 1: "first", 2: "second"}


@dataclass(frozen=True)
class VotedPair:
    """A prompt, two completions, and what each person said of them."""

    prompt: Text
    first: Text
    second: Text
    votes: tuple[Vote, ...]

    @property
    def majority(self) -> Vote | None:
        """What more than half of the people said; None where there is no such thing."""
        vote, count = Counter(self.votes).most_common(1)[0]
        return vote if 2 * count > len(self.votes) else None


def pandalm(path: str | Path) -> list[VotedPair]:
    """PandaLM's test set: three annotators a pair, 0 a tie (Wang et al. 2023, https://arxiv.org/abs/2306.05087).

    Raises DataError for a row that is not one of these.
    """
    from rlhf.data.formats.fields import Fields

    pairs = []
    for located in read(SourceSection(path=str(path)), Quarantine(strict=True)):
        fields = Fields(located)
        said = [fields.get(f"annotator{n}") for n in (1, 2, 3)]
        if any(isinstance(vote, bool) or vote not in _PANDALM for vote in said):
            raise located.error(f"votes must be 0, 1 or 2: {said}", "annotator1")
        votes = tuple(_PANDALM[vote] for vote in said)
        asked = [str(fields.get(name)) for name in ("instruction", "input") if fields.data.get(name)]
        first, second = (str(fields.get(f"response{n}")) for n in (1, 2))  # empty ones were voted on too
        pairs.append(VotedPair("\n\n".join(asked), first, second, votes))
    return pairs


def of_rankings(path: str | Path) -> list[VotedPair]:
    """Every pair of every ranking (OpenAssistant's trees, or any ranking that `sources` reads), with one vote each.

    Which of the two is shown as the first changes from pair to pair, so that no judge gains by a favourite place.
    """
    pairs: list[VotedPair] = []
    for row in Stream([SourceSection(path=str(path))]):
        grades = grades_of(row.data)
        if not grades:
            raise row.error("agreement needs rankings")
        for a, b in combinations(range(len(grades)), 2):
            if len(pairs) % 2:
                a, b = b, a
            texts = row.data["completions"]
            vote: Vote = "tie" if grades[a] == grades[b] else "first" if grades[a] > grades[b] else "second"
            pairs.append(VotedPair(row.data["prompt"], texts[a], texts[b], (vote,)))
    return pairs


def by_engine(pairs: Sequence[VotedPair], engine: TextEngine, **settings: Any) -> tuple[list[Vote], dict[str, Any]]:
    """What a judging model says of each pair, asked in both orders, and the step's report. `settings`: see `functions.judge`."""
    rows = [{"prompt": p.prompt, "completions": [p.first, p.second], "group": str(i)} for i, p in enumerate(pairs)]
    judged, report = judge(rows, engine, **settings)
    said: list[Vote] = ["none"] * len(pairs)
    for row in judged:
        share = row["scores"][0]
        said[int(row["group"])] = "tie" if share == 0.5 else "first" if share > 0.5 else "second"
    return said, report


def by_score(pairs: Sequence[VotedPair], score: Callable[[Text, str], float]) -> list[Vote]:
    """What a score of single completions says of each pair: higher is better, equal is a tie."""
    said: list[Vote] = []
    for pair in pairs:
        a, b = score(pair.prompt, content(pair.first)), score(pair.prompt, content(pair.second))
        said.append("tie" if a == b else "first" if a > b else "second")
    return said


def agreement(pairs: Sequence[VotedPair], said: Sequence[Vote]) -> dict[str, Any]:
    """How far the judge and the people's majority say the same.

    accuracy: over the pairs with a majority, a tie being an answer like any other; `accuracy_decided`: over those whose majority is no tie,
    a judge's tie counting one half. kappa: Cohen's, of judge and majority. humans: the same of people, each against the majority of the
    others (accuracy), and of every two of them (kappa, mean). Raises DataError where no pair has a majority.
    """
    if len(pairs) != len(said):
        raise ValueError(f"{len(said)} verdicts for {len(pairs)} pairs")
    held = [(pair.majority, vote) for pair, vote in zip(pairs, said, strict=True) if pair.majority is not None]
    if not held:
        raise DataError("agreement", "no pair has a majority among its votes")
    truth, found = zip(*held, strict=True)
    decided = [(t, f) for t, f in held if t != "tie"]
    half = sum(1.0 if t == f else 0.5 if f == "tie" else 0.0 for t, f in decided)
    rate = _share(truth, found)
    return {
        "pairs": len(pairs),
        "with_majority": len(held),
        "accuracy": rate,
        "standard_error": math.sqrt(rate * (1 - rate) / len(held)),
        "accuracy_decided": half / len(decided) if decided else None,
        "kappa": kappa(truth, found),
        "said": dict(Counter(said)),
        "unparsed_or_failed": said.count("none"),
        "humans": _humans(pairs),
    }


def kappa(a: Sequence[str], b: Sequence[str]) -> float | None:
    """Cohen's kappa (1960): (p_o - p_e) / (1 - p_e), p_e from each one's own shares. None where chance alone would agree wholly."""
    n = len(a)
    counts_a, counts_b = Counter(a), Counter(b)
    expected = sum(counts_a[c] * counts_b[c] for c in counts_a) / n**2
    return (_share(a, b) - expected) / (1 - expected) if expected < 1 else None


def _humans(pairs: Sequence[VotedPair]) -> dict[str, Any] | None:
    people = min(len(pair.votes) for pair in pairs)
    if people < 2:
        return None
    columns = list(zip(*(pair.votes[:people] for pair in pairs), strict=True))
    kappas = [k for a, b in combinations(columns, 2) if (k := kappa(a, b)) is not None]
    right = [one == rest for pair in pairs for one, rest in _each_against_the_others(pair)]
    return {
        "accuracy": sum(right) / len(right) if right else None,
        "kappa": sum(kappas) / len(kappas) if kappas else None,
        "unanimous": sum(len(set(pair.votes)) == 1 for pair in pairs) / len(pairs),
    }


def _each_against_the_others(pair: VotedPair) -> Iterator[tuple[Vote, Vote]]:
    for i, vote in enumerate(pair.votes):
        rest = VotedPair("", "", "", pair.votes[:i] + pair.votes[i + 1 :]).majority
        if rest is not None:
            yield vote, rest


def _share(a: Sequence[str], b: Sequence[str]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
