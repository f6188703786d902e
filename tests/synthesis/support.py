"""What the synthesis tests share: an engine that answers by rule, out of order, and keeps count; recipes and folders."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rlhf.data.rows import Text, text_of
from rlhf.generation.text_engine import Answer, Request
from rlhf.recipe.schema import DataRecipe
from rlhf.recipe.synthesis import TextSampling
from rlhf.synthesis.steps import ModelSteps

Rule = Callable[[str], str]


def echo(prompt: str) -> str:
    return f"answer to {prompt}"


class FakeEngine:
    """Answers `rule(prompt)`, `n` times with a number that depends on key and seed where n > 1; in a scrambled order."""

    def __init__(self, rule: Rule = echo, *, ahead: int = 7, ended: bool = True) -> None:
        self.rule, self.ahead, self.ended = rule, ahead, ended
        self.prompts: list[str] = []
        self.keys: list[str] = []
        self.choices: list[list[str] | None] = []
        self.most_out = 0
        self.closed = 0

    def answers(
        self, requests: Iterable[Request], sampling: TextSampling, *, seed: int, choices: list[str] | None = None
    ) -> Iterator[tuple[Request, Answer]]:
        self.choices.append(choices)
        waiting = iter(requests)
        while batch := list(islice(waiting, self.ahead)):
            self.most_out = max(self.most_out, len(batch))
            random.Random(len(self.keys)).shuffle(batch)
            for request in batch:
                self.prompts.append(plain(request.prompt))
                self.keys.append(request.key)
                yield request, self.answer(request, sampling, seed)

    def answer(self, request: Request, sampling: TextSampling, seed: int) -> Answer:
        text = self.rule(plain(request.prompt))
        texts = [text]
        if sampling.n > 1:
            texts = [f"{text} {drawn(seed, request.key, i)}" for i in range(sampling.n)]
        return Answer(texts, [self.ended] * len(texts), 5, 3 * len(texts))

    def close(self) -> None:
        self.closed += 1


def drawn(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:6]


def plain(prompt: Text) -> str:
    return text_of(prompt)


def fence(prompt: str, tag: str) -> str:
    """What stands between a request's fences of this name; the fence must be there exactly once."""
    import re

    found = re.findall(rf"<{tag} ([0-9a-f]{{16}})>\n(.*?)\n</{tag} \1>", prompt, re.S)
    assert len(found) == 1, prompt
    return found[0][1]


def recipe(out: Path, source: str | Path | list[Any], *steps: dict[str, Any], **more: Any) -> DataRecipe:
    sources = source if isinstance(source, list) else [{"path": str(source)}]
    engines = {name: {"engine": "openai", "base_url": "http://x", "model": name} for name in more.pop("engines", ())}
    data = {"method": "data", "output_dir": str(out), "sources": sources, "steps": list(steps), "engines": engines}
    return DataRecipe.model_validate(data | more)


def build(made: DataRecipe, **engines: Any) -> dict[str, Any]:
    """A build whose engines are these, by name."""
    from rlhf.data.build import build as data_build

    with ModelSteps(made, lambda _, name: engines[name]) as steps:
        return data_build(made, steps)


def read(out: Path, side: str = "train") -> list[dict[str, Any]]:
    rows = [row for path in sorted((out / side).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def balanced(report: dict[str, Any]) -> None:
    """Every count of the report adds up."""
    assert report["rows_in"] + report["expanded"] == report["rows_out"] + sum(report["dropped"].values())
    for step in report["steps"]:
        if step["step"] not in ("pairs",):
            assert step["rows_in"] + step.get("expanded", 0) == step["rows_out"] + sum(step["dropped"].values()), step
