"""The protocol between the steps that make data and the engines that they ask: texts or messages in, texts out.

The protocol in `engine` is about token ids, and serves training. Here an answer is given out as soon as it is finished, in any
order, so that it can be written to disk at once. Its text depends only on the request's key, the seed and the sampling, and not on
the other requests. (A server may round differently when its batch differs.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rlhf.data.rows import Text
from rlhf.recipe.synthesis import TextSampling


@dataclass(frozen=True)
class Request:
    """A prompt to answer. `key` is its name in the run: the sample's random stream and its place in the journal depend on it.

    A text goes to the model as it is, or as one user message if the engine has `chat`. Messages go through the chat template.
    """

    key: str
    prompt: Text


@dataclass(frozen=True)
class Answer:
    """`sampling.n` texts, whether each ended by itself, and the tokens paid for. `error`: after all retries, why there are none.

    `gave_up`: the engine never answered, and may be gone. Without it, an error is about this request alone.
    """

    texts: list[str]
    ended: list[bool]
    prompt_tokens: int
    completion_tokens: int
    retries: int = 0
    error: str | None = None
    gave_up: bool = False


class OneLine(list[str]):
    """Choices of which one must be the whole answer: an engine that can enforce the last line lets nothing stand before it."""


class TextEngine(Protocol):
    """What a step needs from an engine."""

    def answers(
        self, requests: Iterable[Request], sampling: TextSampling, *, seed: int, choices: list[str] | None = None
    ) -> Iterator[tuple[Request, Answer]]:
        """Each request with its answer, as soon as it is finished.

        `choices`: the last line must be one of these, and the only line if they are `OneLine`. Engines enforce it by guided
        decoding or by the choices' likelihoods. An engine that can do neither ignores it, and the caller's parser finds out.

        Reads only as many requests as it works on at once. Raises SetupError if the engine cannot work at all (no such model,
        refused key). If one request fails, its answer has an `error`.
        """
        ...

    def close(self) -> None:
        """Free memory, connections and servers."""
        ...


def as_completion(prompt: Text, text: str) -> Text:
    """An answer in the form of its prompt: text, or one assistant message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
