"""The protocol between the steps that make data and the engines that answer them: texts or messages in, texts out.

Beside `engine`, which is about token ids and serves training. An answer comes as soon as it is there, in any order, so that each
can be made durable at once; what it says depends on the request's key, the seed and the sampling alone, not on which requests ran beside it
(as far as the engine can hold that: a server's batching may change a rounding).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rlhf.data.rows import Text
from rlhf.recipe.synthesis import TextSampling


@dataclass(frozen=True)
class Request:
    """A prompt to answer. `key` names it among all of a run: it decides the sample's random stream and its place in the journal.

    Text goes to the model as it is (or, by an engine with `chat`, as one user message); messages go through the model's chat template.
    """

    key: str
    prompt: Text


@dataclass(frozen=True)
class Answer:
    """`sampling.n` texts, whether each ended by itself, and the tokens paid for; or why there is none (`error`), after all retries.

    `gave_up`: the engine said nothing at all to it, however often it was asked, and may be gone; else an error is about this request.
    """

    texts: list[str]
    ended: list[bool]
    prompt_tokens: int
    completion_tokens: int
    retries: int = 0
    error: str | None = None
    gave_up: bool = False


class OneLine(list[str]):
    """Choices of which one is the whole answer: an engine that can see to the last line lets nothing come before it."""


class TextEngine(Protocol):
    """What a step needs of an engine."""

    def answers(
        self, requests: Iterable[Request], sampling: TextSampling, *, seed: int, choices: list[str] | None = None
    ) -> Iterator[tuple[Request, Answer]]:
        """Each request with its answer, as they come. `choices`: the last line must be one of these (and as `OneLine` the only one),
        where the engine can see to that: by guided decoding, or by the choices' likelihoods; elsewhere the caller's parser finds out.

        Reads no more requests ahead than it works on at once. Raises SetupError when the engine cannot work at all (no such
        model, refused key); what goes wrong with one request is its answer's `error`.
        """
        ...

    def close(self) -> None:
        """Let go of memory, connections and servers."""
        ...
