"""What the engines share about sampling: which settings each can hold to, and what a request's randomness hangs on.

No engine ignores a setting it cannot carry out: a recipe that asks for one is refused, with the engine that has it named.
Imports nothing heavy, so that `rlhf check` can ask too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from typing import Literal, TypeVar

from rlhf.errors import RecipeError
from rlhf.generation.text_engine import OneLine
from rlhf.recipe.synthesis import TextSampling

Engine = Literal["transformers", "vllm", "openai"]
T = TypeVar("T")
RATIONALE_LINES = 30  # at most, before a last line that is a choice


def unsupported(engine: Engine, sampling: TextSampling) -> list[tuple[str, str]]:
    """The settings that do not go with this engine, each with what is wrong; empty when all do."""
    problems = []
    if engine != "transformers":
        if sampling.num_beams > 1:
            problems.append(("num_beams", f"engine {engine} has no beam search; use engine: transformers"))
        if sampling.no_repeat_ngram_size:
            instead = "use repetition_penalty, or engine: transformers"
            problems.append(("no_repeat_ngram_size", f"engine {engine} cannot do it; {instead}"))
    if sampling.length_penalty != 1.0 and sampling.num_beams == 1:
        problems.append(("length_penalty", "does nothing without num_beams above 1"))
    if 1 < sampling.num_beams < sampling.n:
        problems.append(("n", f"at most num_beams ({sampling.num_beams}) completions come out of a beam search"))
    return problems


def refuse_unsupported(engine: Engine, sampling: TextSampling, *, name: str) -> None:
    """Raise RecipeError for settings that this engine cannot carry out."""
    if problems := unsupported(engine, sampling):
        raise RecipeError([f"engine {name}: sampling.{key}: {problem}" for key, problem in problems])


def distinct_samples(sampling: TextSampling) -> int:
    """How many samples to ask for: greedy ones are all the same, and one stands for `n`."""
    return 1 if sampling.temperature == 0 and sampling.num_beams == 1 else sampling.n


def stream(key: str) -> int:
    """The number of a request's random stream: 64 bits of its key's hash."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def request_seed(seed: int, key: str, part: int = 0) -> int:
    """A request's own seed, 31 bits: some servers take no more. `part` tells the calls of one request apart."""
    digest = hashlib.blake2b(f"{seed}\0{part}\0{key}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def beginnings(choices: list[str]) -> tuple[str, ...]:
    """What makes a line the last one: what every choice begins with ("Verdict: "), or their first characters where that is nothing."""
    common = "".join(c[0] for c in takewhile(lambda column: len(set(column)) == 1, zip(*choices, strict=False)))
    return (common,) if common else tuple(sorted({choice[0] for choice in choices}))


def last_line_pattern(choices: list[str]) -> str:
    """A regular expression, as guided decoding takes it: a rationale of up to 30 lines, then a last one that is a choice.

    A line that begins as every choice does ("Verdict: ") is the last, so the model cannot go on after it or bend it. Guided
    decoding knows no look-ahead: lines that do not begin so are spelled out by the place where they leave the beginning.
    """
    last = f"({'|'.join(map(re.escape, choices))})"
    if isinstance(choices, OneLine):
        return last
    begin, *others = beginnings(choices)
    leaving = [f"{re.escape(begin[:i])}([^{re.escape(begin[i])}\\n][^\\n]*)?" for i in range(len(begin))]
    if others:
        leaving = [f"([^{''.join(map(re.escape, (begin, *others)))}\\n][^\\n]*)?"]
    return f"(({'|'.join(leaving)})\\n){{0,{RATIONALE_LINES}}}{last}"


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of at most `size`, read only when asked for."""
    source = iter(items)
    while window := list(islice(source, size)):
        yield window
