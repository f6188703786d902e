"""How every step asks its models.

    for each round, for each engine:   rows -> requests that have no answer yet -> the engine -> the journal
    then:                              rows + the journal -> new rows, in the order of the old ones

The rows lie on disk and are read again for each pass. Only the rows that the engine works on are in memory, so memory does not
grow with their number. An answer is used only after the journal holds it, so a run may be killed at any time and can go on. A
step (`Task`) says only what to ask, and what to make of the answers. Its random choices come from hashes, so the same seed gives
the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from rlhf.data.rows import Located, Row, Text
from rlhf.errors import RlhfError
from rlhf.generation.text_engine import Answer, Request, TextEngine
from rlhf.recipe.synthesis import TextSampling
from rlhf.synthesis.journal import Journal
from rlhf.synthesis.naming import Names

FAILURES = 25  # requests given up in a row: the engine is gone, and to ask on would only drop rows
REASONS = 20  # different failures that are reported; a server may say something else each time

Given = Callable[[str], Answer | None]  # a slot -> the answer to the row's request in it


@dataclass(frozen=True)
class Lane:
    """Requests to one engine with one sampling. `choices`: the last line must be one of these, if the engine can enforce it."""

    engine: str
    sampling: TextSampling
    choices: list[str] | None = None


@dataclass(frozen=True)
class Ask:
    """One request of a row. `slot` is its name among the row's requests."""

    slot: str
    prompt: Text
    lane: int = 0


@dataclass(frozen=True)
class Made:
    """What a step makes of a row: new rows, or none and the `reason`."""

    rows: Sequence[Row] = ()
    reason: str = ""


class Task(Protocol):
    """A step over rows. Its random choices depend on a row's `name` (see `naming`), not on the row's position.

    `asks` is called in each of `rounds` rounds. In a later round, `given` has the answers of the earlier rounds.
    """

    lanes: Sequence[Lane]
    rounds: int

    def asks(self, row: Row, name: str, round: int, given: Given) -> Iterable[Ask]:
        """The requests of this row in this round. Raises ValueError for a row that the step cannot take."""
        ...

    def made(self, row: Located, name: str, given: Given) -> Made:
        """What the step makes of the row. Called once for each row, in order."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the step's report says beside the row counts. Called after the last row."""
        ...


@dataclass
class Cost:
    """What one engine was asked, in this run and in the earlier runs whose answers it uses. `failures`: how many, by reason."""

    requests: int = 0
    from_journal: int = 0
    failed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, answer: Answer, *, known: bool) -> None:
        self.requests += 1
        self.from_journal += known
        if answer.error is not None:
            self.failed += 1
            told = answer.error in self.failures or len(self.failures) < REASONS
            self.failures[answer.error if told else "other reasons"] += 1
        self.retries += answer.retries
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens


@dataclass
class Run:
    """One step over some rows. `rows` reads them in order, as often as it is called; `engine` opens an engine by its name."""

    task: Task
    rows: Callable[[], Iterator[Located]]
    engine: Callable[[str], TextEngine]
    journal: Journal | None  # None only where nothing is asked
    names: Names
    seed: int
    progress: Callable[[str, int, int, int], None] = lambda title, done, total, tokens: None
    costs: dict[str, Cost] = field(default_factory=dict)
    _failures: int = 0

    def ask(self) -> None:
        """Get an answer to every request into the journal. Raises what the engines raise, and RlhfError if one stops answering."""
        if self.journal is None:
            return
        engines = [lane.engine for lane in self.task.lanes]
        by_engine = sorted(
            range(len(engines)), key=lambda i: engines.index(engines[i])
        )  # each is loaded once in a round
        for round in range(self.task.rounds):
            for number in by_engine:
                lane = self.task.lanes[number]
                cost = self.costs.setdefault(lane.engine, Cost())
                waiting = 0
                for key, position, ask in self._requests(round, number):
                    known = self.journal.get(position, ask.slot, key)
                    if known is None:
                        waiting += 1
                    else:
                        cost.add(known, known=True)
                if waiting:  # an engine is opened only if it has something to do
                    self._ask(self.journal, round, number, waiting, cost)
        self.journal.sync()

    def made(self, account: Account) -> Iterator[Located]:
        """The rows that the step makes, in the order of the rows that it got."""
        for position, row in enumerate(self.rows()):
            try:
                made = self.task.made(row, self._name(position), self._given(position))
            except ValueError as error:
                raise row.error(str(error)) from error
            account.add(made)
            yield from (replace(row, data=data) for data in made.rows)

    def _requests(self, round: int, lane: int) -> Iterator[tuple[str, int, Ask]]:
        for position, row in enumerate(self.rows()):
            try:
                name = self._name(position)
                for ask in self.task.asks(row.data, name, round, self._given(position)):
                    if ask.lane == lane:
                        yield key_of(name, ask), position, ask
            except ValueError as error:
                raise row.error(str(error)) from error

    def _name(self, position: int) -> str:
        return "" if self.journal is None else self.names.of(position)

    def _given(self, position: int) -> Given:
        return lambda slot: None if self.journal is None else self.journal.get(position, slot)

    def _ask(self, journal: Journal, round: int, number: int, waiting: int, cost: Cost) -> None:
        lane = self.task.lanes[number]
        out: dict[str, Ask] = {}

        def requests() -> Iterator[Request]:
            for key, position, ask in self._requests(round, number):
                if journal.get(position, ask.slot, key) is None:
                    out[key] = ask
                    yield Request(key, ask.prompt)

        title = f"{lane.engine}{f', round {round + 1}' if round else ''}"
        done = tokens = 0
        self.progress(title, 0, waiting, 0)
        engine = self.engine(lane.engine)
        for request, answer in engine.answers(requests(), lane.sampling, seed=self.seed, choices=lane.choices):
            if out.pop(request.key, None) is None:
                raise RlhfError(
                    f"engine {lane.engine}: answered a request that it was not asked, or twice: {request.key}"
                )
            answer = _checked(answer, lane)
            journal.add(request.key, answer)
            cost.add(answer, known=False)
            self._watch(lane, answer)
            done, tokens = done + 1, tokens + answer.completion_tokens
            self.progress(title, done, waiting, tokens)
        if out:
            raise RlhfError(f"engine {lane.engine}: left {len(out)} requests unanswered, such as {next(iter(out))}")

    def _watch(self, lane: Lane, answer: Answer) -> None:
        """End the run if the engine is gone. A request that it refuses (too long, say) fails only its own row, however many there are."""
        self._failures = self._failures + 1 if answer.gave_up else 0
        if self._failures >= FAILURES:
            raise RlhfError(
                f"engine {lane.engine}: {FAILURES} requests in a row failed, the last with: {answer.error}; the answers so far are "
                "kept: run the same command again to continue"
            )


@dataclass
class Account:
    """Row counts of a step: rows_in + expanded = rows_out + dropped (by reason)."""

    rows_in: int = 0
    rows_out: int = 0
    expanded: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, made: Made) -> None:
        self.rows_in += 1
        self.rows_out += len(made.rows)
        if made.rows:
            self.expanded += len(made.rows) - 1
        else:
            self.dropped[made.reason] += 1

    def report(self) -> dict[str, Any]:
        assert self.rows_in + self.expanded == self.rows_out + self.dropped.total()
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "expanded": self.expanded,
            "dropped": dict(self.dropped.most_common()),
        }


def key_of(name: str, ask: Ask) -> str:
    """A request's key: its row's name, its slot in the row, and a digest of what it asks."""
    return f"{name}/{ask.slot}/{_digest(ask.prompt)}"


def chance(*parts: object) -> float:
    """A number in [0, 1) that looks random and depends only on the parts."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = str(part).encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "big") + text)
    return (int.from_bytes(digest.digest(), "big") >> 11) / 2**53


def _digest(prompt: Text) -> str:
    text = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _checked(answer: Answer, lane: Lane) -> Answer:
    """The answer; an error instead if the engine gave another number of texts than it was asked for."""
    n = lane.sampling.n
    if answer.error is None and (len(answer.texts) != n or len(answer.ended) != n):
        return replace(answer, texts=[], ended=[], error=f"the engine gave {len(answer.texts)} texts for n = {n}")
    return answer
