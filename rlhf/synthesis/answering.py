"""The steps `generate` and `pool`: models answer the rows' prompts.

    completion    {prompt}                                 -> {prompt, completion}
    rejected      {prompt, completion}                     -> {prompt, chosen: completion, rejected: the answer}
    completions   {prompt}, {prompt, completion},          -> {prompt, completions, models}, to be scored: the row's own first
                  {prompt, completions} without scores

An answer is left out and counted if it failed, is empty, or equals an earlier answer or the chosen completion. A row with no
answer left is dropped, for the first of its reasons. A pool draws its members by weight; none is drawn twice while others are
left (Efraimidis and Spirakis 2006: the smallest -log(u) / w first). The draws come from a hash of the seed and the row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.formats.templates import fill
from rlhf.data.rows import Located, Row, Text, ended_of, kind_of, text_of, with_ended
from rlhf.generation.text_engine import as_completion
from rlhf.recipe.synthesis import AskSection, GenerateStep, PoolStep
from rlhf.synthesis.asking import Ask, Given, Lane, Made, chance
from rlhf.synthesis.prompts import template, with_system

SOURCE = "source"  # the model of a completion that came with the row
EMPTY, FAILED, CUT_OFF, AS_CHOSEN, AS_OTHER = (
    "the answer is empty",
    "the engine failed",
    "the answer was cut off",
    "the answer equals chosen",
    "the answer equals another",
)


@dataclass(frozen=True)
class Candidate:
    """One usable answer, and the member that gave it."""

    text: str
    label: str
    ended: bool


class Member:
    """Who answers: an engine with its sampling, prompt and system message."""

    def __init__(self, section: AskSection, label: str, step: str) -> None:
        self.label = label
        self.lane = Lane(section.engine, section.sampling)
        self._system = section.system
        self._template = None
        if section.prompt is not None:
            self._template = template(section.prompt, step, section.language)

    def request(self, prompt: Text) -> Text:
        """What the member is asked for a row's prompt: the prompt, put into the template and under the system message."""
        if self._template is not None:
            prompt = fill(self._template, {"prompt": text_of(prompt)})
        return with_system(self._system, prompt)


class Answering:
    """Both steps. They differ in who answers a row, and in what is made of the answers."""

    rounds = 1

    def __init__(
        self, step: GenerateStep | PoolStep, members: list[Member], into: str, drawn: Callable[[str], list[int]]
    ) -> None:
        """`drawn` gives the members that answer a row, in order, from the row's name."""
        self.lanes: Sequence[Lane] = [member.lane for member in members]
        self._members, self._into, self._members_of = members, into, drawn
        self._strip, self._cut_off = step.strip, step.cut_off
        self._dropped: Counter[str] = Counter()
        self._answers = self._broken = 0
        self._by: Counter[str] = Counter()

    def asks(self, row: Row, name: str, round: int, given: Given) -> Iterable[Ask]:
        self._fits(row)
        for turn, index in enumerate(self._members_of(name)):
            yield Ask(f"{index}.{turn}", self._members[index].request(row["prompt"]), index)

    def made(self, row: Located, name: str, given: Given) -> Made:
        data, reasons = row.data, Counter[str]()
        own = [data["completion"]] if "completion" in data else list(data.get("completions", ()))
        found = list(self._usable(name, given, {content(text).strip() for text in own}, reasons))
        self._dropped += reasons
        self._by.update(candidate.label for candidate in found)
        if not found:
            return Made(reason=next(iter(reasons)))
        return Made(list(self._rows(data, own, found)))

    def _rows(self, data: Row, own: list[Text], found: list[Candidate]) -> Iterator[Row]:
        """What is made of the answers; the rows say which completions ended where one of them did not."""
        texts = [as_completion(data["prompt"], candidate.text) for candidate in found]
        before, ended = ended_of(data), [candidate.ended for candidate in found]
        rows: list[tuple[Row, list[bool]]]
        if self._into == "completion":
            rows = [({"completion": text}, [end]) for text, end in zip(texts, ended, strict=True)]
        elif self._into == "rejected":
            pairs = zip(texts, ended, strict=True)
            rows = [({"chosen": own[0], "rejected": text}, [*before, end]) for text, end in pairs]
        else:
            models = [*data.get("models", [SOURCE] * len(own)), *(candidate.label for candidate in found)]
            rows = [({"completions": [*own, *texts], "models": models}, before + ended)]
        for row, flags in rows:
            whole = {"prompt": data["prompt"], **row}
            yield whole if all(flags) else with_ended(whole, flags)

    def facts(self) -> dict[str, Any]:
        return {
            "answers": self._answers,
            "answers_kept": dict(self._by),
            "answers_dropped": dict(self._dropped.most_common()),
            "answers_cut_off": self._broken,
        }

    def _usable(self, name: str, given: Given, own: set[str], reasons: Counter[str]) -> Iterator[Candidate]:
        seen = set(own)
        for turn, index in enumerate(self._members_of(name)):
            member = self._members[index]
            answer = given(f"{index}.{turn}")
            if answer is None or answer.error is not None:
                self._answers += member.lane.sampling.n
                reasons[FAILED] += member.lane.sampling.n
                continue
            for text, ended in zip(answer.texts, answer.ended, strict=True):
                self._answers += 1
                self._broken += not ended
                bare = text.strip()
                if not bare:
                    reasons[EMPTY] += 1
                elif not ended and self._cut_off == "drop":
                    reasons[CUT_OFF] += 1
                elif bare in own and self._into == "rejected":
                    reasons[AS_CHOSEN] += 1
                elif bare in seen:
                    reasons[AS_OTHER] += 1
                else:
                    seen.add(bare)
                    yield Candidate(bare if self._strip else text, member.label, ended)

    def _fits(self, row: Row) -> None:
        kind = kind_of(row)
        if self._into == "completion" and kind != "prompt":
            raise ValueError(f"generate, into: completion takes rows of prompts alone, and this is a {kind} row")
        if self._into == "rejected" and kind != "demonstration":
            raise ValueError(f"generate, into: rejected needs a prompt with a completion, and this is a {kind} row")
        if "scores" in row or "ranking" in row:
            raise ValueError("these completions are scored already; put the step before score or judge")
        if kind not in ("prompt", "demonstration", "ranking"):
            raise ValueError(f"takes prompts, demonstrations and unscored completions, and this is a {kind} row")


def generating(step: GenerateStep) -> Answering:
    """`generate`: one model, `sampling.n` answers to each prompt."""
    return Answering(step, [Member(step, step.engine, "generate")], step.into, lambda _: [0])


def pooling(step: PoolStep, seed: int) -> Answering:
    """`pool`: several members; each prompt is answered by some of them."""
    members = [Member(m, label, "pool") for m, label in zip(step.members, step.labels, strict=True)]
    weights = [member.weight for member in step.members]
    return Answering(step, members, "completions", lambda name: draw(weights, step.per_prompt, seed, name))


def draw(weights: list[float], count: int, seed: int, name: object) -> list[int]:
    """`count` indices, drawn by weight without replacement. When all are drawn, the draw starts again with all."""
    out: list[int] = []
    turn = 0
    while len(out) < count:
        keys = [-math.log1p(-chance(seed, "pool", name, turn, i)) / w for i, w in enumerate(weights)]
        out += sorted(range(len(weights)), key=keys.__getitem__)[: count - len(out)]
        turn += 1
    return out


def content(completion: Text) -> str:
    """A completion's words, without roles."""
    return completion if isinstance(completion, str) else "\n".join(message["content"] for message in completion)
