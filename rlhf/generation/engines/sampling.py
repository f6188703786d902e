"""What the engines share about sampling: which settings each engine has, and what a request's random numbers depend on.

No engine ignores a setting that it does not have: such a recipe is refused, with the name of an engine that has it. Imports
nothing heavy, because `rlhf check` uses it too.
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
RATIONALE_LINES = 30  # at most so many before the last line


def unsupported(engine: Engine, sampling: TextSampling) -> list[tuple[str, str]]:
    """The settings that this engine does not have, each with what is wrong."""
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
    """Raise RecipeError for settings that this engine does not have."""
    if problems := unsupported(engine, sampling):
        raise RecipeError([f"engine {name}: sampling.{key}: {problem}" for key, problem in problems])


def distinct_samples(sampling: TextSampling) -> int:
    """How many samples to ask for. Greedy samples are all equal, so one is enough for `n`."""
    return 1 if sampling.temperature == 0 and sampling.num_beams == 1 else sampling.n


def stream(key: str) -> int:
    """The number of a request's random stream: 64 bits of its key's hash."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def request_seed(seed: int, key: str, part: int = 0) -> int:
    """A request's own seed: 31 bits, because some servers take no more. `part` is the number of the call for this request."""
    digest = hashlib.blake2b(f"{seed}\0{part}\0{key}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def beginnings(choices: list[str]) -> tuple[str, ...]:
    """A line that begins so is the last line: the common beginning of all choices ("Verdict: "), else their first characters."""
    common = "".join(c[0] for c in takewhile(lambda column: len(set(column)) == 1, zip(*choices, strict=False)))
    return (common,) if common else tuple(sorted({choice[0] for choice in choices}))


def last_line_pattern(choices: list[str]) -> str:
    """A regular expression for guided decoding: a rationale of up to 30 lines, then a last line that is a choice.

    A line with the common beginning of the choices ("Verdict: ") is the last line: the model can neither write on after it nor
    end it in another way. Guided decoding has no look-ahead, so the pattern lists every way in which a line can leave that
    beginning.
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
    """Consecutive lists of at most `size` items. A list is read only when it is asked for."""
    source = iter(items)
    while window := list(islice(source, size)):
        yield window
