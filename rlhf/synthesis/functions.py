"""The model steps as functions of plain rows: they do the same as in a recipe, without files.

    rows, report = pool([{"prompt": "Why is the sky blue?"}], {"small": engine}, members=[{"engine": "small"}], per_prompt=4)
    rows, report = score(rows, judge_engine, aspects=["overall"])
    rows, report = select(rows)

Each takes `seed` (0), `journal` (a file), and the keys of its step's section in `recipe.synthesis`. Answers are kept in the
`journal`, and a second call with the same settings uses them. The journal does not know which model answered: give each model a
file of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from rlhf.data.rows import Located, Row
from rlhf.errors import DataError, RecipeError
from rlhf.generation.text_engine import TextEngine
from rlhf.recipe.steps import DataStep, ModelStep
from rlhf.recipe.synthesis import ParaphraseStep
from rlhf.synthesis.asking import Account, Run
from rlhf.synthesis.identity import header_of
from rlhf.synthesis.journal import Journal
from rlhf.synthesis.naming import Names
from rlhf.synthesis.paraphrasing import in_one_group
from rlhf.synthesis.scoring import SCORER
from rlhf.synthesis.steps import task_of

ENGINE = "engine"  # the name of a function's only engine, in its journal and its report


class Result(NamedTuple):
    """The rows that a step made, in order, and its report: row counts, each engine's requests and tokens, the step's own facts."""

    rows: list[Row]
    report: dict[str, Any]


def generate(rows: Iterable[Row], engine: TextEngine, **settings: Any) -> Result:
    """One model answers (`GenerateStep`)."""
    return _apply("generate", rows, {ENGINE: engine}, engine=ENGINE, **settings)


def pool(rows: Iterable[Row], engines: Mapping[str, TextEngine], **settings: Any) -> Result:
    """Several models answer (`PoolStep`); the members name their engines."""
    return _apply("pool", rows, engines, **settings)


def evolve(rows: Iterable[Row], engine: TextEngine, **settings: Any) -> Result:
    """A model rewrites completions (`EvolveStep`)."""
    return _apply("evolve", rows, {ENGINE: engine}, engine=ENGINE, **settings)


def score(rows: Iterable[Row], engine: TextEngine | None = None, **settings: Any) -> Result:
    """Scores (`ScoreStep`) by the engine; without an engine, by `model` or `callable`."""
    if engine is not None:
        return _apply("score", rows, {ENGINE: engine}, engine=ENGINE, **settings)
    from rlhf.synthesis.scorer import ScorerEngine

    step = DataStep.model_validate({"score": {k: v for k, v in settings.items() if k not in ("seed", "journal")}}).score
    assert step is not None
    with closing(ScorerEngine(step)) as scorer:
        return _apply("score", rows, {SCORER: scorer}, **settings)


def judge(rows: Iterable[Row], engine: TextEngine, **settings: Any) -> Result:
    """Scores by comparisons in both orders (`JudgeStep`)."""
    return _apply("judge", rows, {ENGINE: engine}, engine=ENGINE, **settings)


def paraphrase(rows: Iterable[Row], engine: TextEngine, **settings: Any) -> Result:
    """A model says prompts in other words (`ParaphraseStep`)."""
    return _apply("paraphrase", rows, {ENGINE: engine}, engine=ENGINE, **settings)


def select(rows: Iterable[Row], **settings: Any) -> Result:
    """One pair of each scored row (`SelectStep`)."""
    return _apply("select", rows, {}, **settings)


def _apply(
    name: str,
    rows: Iterable[Row],
    engines: Mapping[str, TextEngine],
    *,
    seed: int = 0,
    journal: str | Path | None = None,
    **settings: Any,
) -> Result:
    section = DataStep.model_validate({name: settings}).model_step
    assert section is not None
    held = list(rows)
    for number, row in enumerate(held, 1):
        if "prompt" not in row:
            raise DataError(
                "rows", f"every row needs one; this row has {', '.join(row) or 'nothing'}", row=number, field="prompt"
            )
    try:
        task = task_of(section, seed)
    except RecipeError as error:
        raise RecipeError(f"{name}.prompt: {error}") from error
    with tempfile.TemporaryDirectory() if journal is None else nullcontext() as scratch:
        path = Path(scratch) / "journal.jsonl" if scratch is not None else Path(journal or "")
        names = Names(row["prompt"] for row in held)
        header = header_of(name, section, {}, seed)
        with Journal(path, header, position_of=names.position) if task.rounds else nullcontext() as kept:
            run = Run(task, lambda: _located(held, section), lambda wanted: _named(engines, wanted), kept, names, seed)
            account = Account()
            run.ask()
            made = [row.data if row.group is None else {**row.data, "group": row.group} for row in run.made(account)]
    costs = {engine: vars(cost) for engine, cost in run.costs.items()}
    return Result(made, {**account.report(), **({"engines": costs} if costs else {}), **task.facts()})


def _located(rows: list[Row], section: ModelStep) -> Iterator[Located]:
    for number, row in enumerate(rows, 1):
        data = {key: value for key, value in row.items() if key != "group"}
        located = Located("rows", number, data, number, row.get("group"))
        yield in_one_group(located) if isinstance(section, ParaphraseStep) else located


def _named(engines: Mapping[str, TextEngine], name: str) -> TextEngine:
    if name not in engines:
        raise RecipeError(f"engine: no engine {name!r} was given; there are {', '.join(engines) or 'none'}")
    return engines[name]
