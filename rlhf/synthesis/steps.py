"""The model steps of a data recipe: generate, pool, evolve, score, judge, paraphrase and select.

`data` may not import models, so `build` here gives its own hook to `rlhf.data.build`. An engine is opened for the first request
that has no answer yet. At most one engine is open at a time, so two models need not fit in memory together.
"""

from __future__ import annotations

import errno
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.data.rows import Located
from rlhf.errors import RecipeError, RlhfError
from rlhf.generation.engines import open_engine
from rlhf.generation.text_engine import TextEngine
from rlhf.recipe.schema import DataRecipe
from rlhf.recipe.steps import DataStep, ModelStep
from rlhf.recipe.synthesis import (
    EngineSection,
    EvolveStep,
    GenerateStep,
    JudgeStep,
    ParaphraseStep,
    PoolStep,
    ScoreStep,
)
from rlhf.recipe.yaml_lines import dotted
from rlhf.synthesis.answering import generating, pooling
from rlhf.synthesis.asking import Account, Run, Task
from rlhf.synthesis.checks import problems_of
from rlhf.synthesis.evolving import Evolving
from rlhf.synthesis.identity import header_of
from rlhf.synthesis.journal import Journal
from rlhf.synthesis.judging import Judging
from rlhf.synthesis.naming import Names
from rlhf.synthesis.paraphrasing import Paraphrasing, in_one_group
from rlhf.synthesis.scoring import SCORER, Measuring, Rating
from rlhf.synthesis.selecting import Selecting

if TYPE_CHECKING:
    from rlhf.data.blocks import Rows, Spill

SAY_SECONDS = 10.0  # between lines of progress


def build(recipe: DataRecipe) -> dict[str, Any]:
    """Build the recipe's folder, and ask its models where its steps say so. Returns the report; raises what `data.build` raises."""
    from rlhf.data.build import build

    with ModelSteps(recipe) as steps:
        return build(recipe, steps)


def task_of(step: ModelStep, seed: int) -> Task:
    """The task of a step's section. Raises RecipeError for a prompt that cannot be used."""
    match step:
        case GenerateStep():
            return generating(step)
        case PoolStep():
            return pooling(step, seed)
        case EvolveStep():
            return Evolving(step, seed)
        case ScoreStep():
            return Rating(step) if step.engine is not None else Measuring(step)
        case JudgeStep():
            return Judging(step)
        case ParaphraseStep():
            return Paraphrasing(step)
        case _:
            return Selecting(step, seed)


class ModelSteps(AbstractContextManager["ModelSteps"]):
    """`data.build`'s hook: carries out the model steps, and closes the last engine at the end."""

    def __init__(
        self, recipe: DataRecipe, open_engine: Callable[[EngineSection, str], TextEngine] = open_engine
    ) -> None:
        self._sections, self._open = recipe.engines, open_engine
        self._name, self._engine = "", None  # type: tuple[str, TextEngine | None]
        self._headers: list[dict[str, Any]] = []
        if found := [f"{dotted(key)}: {problem}" for key, problem in problems_of(recipe)]:
            raise RecipeError(found)

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, step: DataStep, number: int, rows: Rows, out: Spill, folder: Path, seed: int) -> dict[str, Any]:
        """Carry out one step over rows on disk. The rows that it makes go to `out`; returns its report."""
        section = step.model_step
        assert section is not None
        if self._name == SCORER:  # it belongs to the step before
            self._close()
        header = header_of(step.name, section, self._sections, seed)
        header["occurrence"] = self._headers.count(header)  # two equal steps must not draw the same samples
        self._headers.append({key: value for key, value in header.items() if key != "occurrence"})
        task = task_of(section, seed)
        own_seed = seed + 1_000_003 * header["occurrence"]
        path = folder / "journal" / f"step-{number}.jsonl"
        read = _reader(rows, section)
        names = Names(row.data["prompt"] for row in read() if task.rounds)
        opened = (
            Journal(path, header, _say, position_of=names.position, kin="step-*.jsonl")
            if task.rounds
            else nullcontext()
        )
        with opened as journal:
            opening = partial(self._get, section=section)
            run = Run(task, read, opening, journal, names, own_seed, _Progress(step.name))
            report = carry_out(run, out, step.name)
        self._price(report)
        _tell(report)
        return {"step": step.name, **section.model_dump(exclude_defaults=True), **report}

    def _price(self, report: dict[str, Any]) -> None:
        """Add the cost of all answers to each engine that has a price, also of the answers that an earlier run paid for."""
        for name, used in report.get("engines", {}).items():
            price = getattr(self._sections.get(name), "price", None)
            if price is not None:
                millionths = used["prompt_tokens"] * price.prompt + used["completion_tokens"] * price.completion
                used["cost"] = millionths / 1e6

    def _get(self, name: str, section: ModelStep) -> TextEngine:
        if self._engine is None or self._name != name:
            self._close()
            if name == SCORER and isinstance(section, ScoreStep) and section.engine is None:
                from rlhf.synthesis.scorer import ScorerEngine

                self._engine = ScorerEngine(section)
            else:
                self._engine = self._open(self._sections[name], name)
            self._name = name
        return self._engine

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._name, self._engine = "", None


def carry_out(run: Run, out: Spill, name: str) -> dict[str, Any]:
    """Ask, then write the rows; returns the row counts, the costs and the step's own facts."""
    account = Account()
    run.ask()
    try:
        out.add_rows(run.made(account))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise RlhfError(
            f"{out.path.parent}: no space left for the rows of the step {name}; every answer is kept: "
            "make room, and run the same command again to continue"
        ) from error
    report = account.report()
    if run.costs:
        report["engines"] = {engine: dict(vars(cost)) for engine, cost in run.costs.items()}
    return report | run.task.facts()


def _reader(rows: Rows, section: ModelStep) -> Callable[[], Iterator[Located]]:
    from rlhf.data.blocks import to_rows

    def read() -> Iterator[Located]:
        for block in rows.blocks():
            for row in to_rows(block):
                yield in_one_group(row) if isinstance(section, ParaphraseStep) else row

    return read


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _tell(report: dict[str, Any]) -> None:
    """Print what a user must not overlook: the cost, and answers that could not be used."""
    costs = {name: used["cost"] for name, used in report.get("engines", {}).items() if "cost" in used}
    if costs:
        _say("  cost: " + ", ".join(f"{name} {cost:.4f}" for name, cost in costs.items()))
    if "unparsed_rate" in report:
        _say(f"  answers that could not be read: {report['unparsed_rate']:.1%}, {report['unparsed']} in all")
    failures = sum((engine["failures"] for engine in report.get("engines", {}).values()), Counter[str]())
    if failures:
        [(reason, _)] = failures.most_common(1)
        _say(
            f"  {failures.total()} requests failed (mostly: {reason}) and their rows lack those answers; "
            "run rlhf data build again to ask them again"
        )


class _Progress:
    """A line every few seconds: done, to do, tokens a second, time left."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._began = self._said = 0.0

    def __call__(self, title: str, done: int, total: int, tokens: int) -> None:
        now = time.monotonic()
        if not done:
            self._began = self._said = now
        if not done or (done < total and now - self._said < SAY_SECONDS):
            return
        self._said = now
        seconds = max(now - self._began, 1e-9)
        left = int(seconds / done * (total - done))
        _say(
            f"{self._step} ({title}) {done}/{total}  {tokens / seconds:.0f} tokens/s  eta {left // 60}:{left % 60:02d}"
        )
