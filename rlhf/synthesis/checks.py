"""The mistakes in a recipe's model steps that show before a model is asked.

They are: prompts that cannot be used, settings that an engine does not have, and steps that cannot take the rows which the
earlier steps make. `rlhf check` looks for them, and so does `steps` before the first request: a mistake in the last step must not
be found after the other steps are paid for. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlhf.errors import RecipeError
from rlhf.generation.engines.sampling import unsupported
from rlhf.recipe.schema import DataRecipe
from rlhf.recipe.steps import DataStep
from rlhf.recipe.synthesis import AskSection, PoolStep, ScoreStep
from rlhf.synthesis.prompts import template

Key = tuple[str | int, ...]


def problems_of(recipe: DataRecipe) -> Iterator[tuple[Key, str]]:
    """Each problem's key in the recipe, and what it is."""
    kind, scored = None, False  # of the rows that come to a step, as far as the earlier steps determine it
    for number, step in enumerate(recipe.steps):
        takes, makes = _kinds(step)
        if kind is not None and takes and kind not in takes:
            yield (
                ("steps", number, step.name),
                f"takes rows that are a {' or a '.join(takes)}, and here come {kind} rows",
            )
        elif scored and (step.generate or step.pool):
            yield ("steps", number, step.name), "the completions are scored already; put it before score or judge"
        kind = makes or kind
        scored = bool(step.score or step.judge) or (scored and step.evolve is None)
        for key, section in _asking(step):
            path = ("steps", number, *key)
            try:
                template(section.prompt, step.name, section.language)
            except RecipeError as error:
                yield (*path, "prompt"), str(error)
            engine = recipe.engines.get(section.engine or "")
            if engine is not None:
                for name, problem in unsupported(engine.engine, section.sampling):
                    yield (*path, "sampling", name), problem


def _kinds(step: DataStep) -> tuple[tuple[str, ...], str | None]:
    """(the kinds of rows that a step takes, the kind that it makes). None named: it takes any kind; None: it keeps the kind."""
    if step.generate:
        into = {
            "completion": (("prompt",), "demonstration"),
            "rejected": (("demonstration",), "preference"),
            "completions": (("prompt", "demonstration", "ranking"), "ranking"),
        }
        return into[step.generate.into]
    if step.pool:
        return ("prompt", "demonstration", "ranking"), "ranking"
    if step.evolve:
        return ("demonstration", "ranking"), "ranking" if step.evolve.keep == "all" else None
    if step.score or step.judge:
        return ("ranking",), "ranking"
    if step.select or step.pairs:
        return ("ranking",), "preference"
    return (), None


def _asking(step: DataStep) -> Iterator[tuple[Key, AskSection | ScoreStep]]:
    section = step.model_step
    if isinstance(section, PoolStep):
        yield from (((step.name, "members", i), member) for i, member in enumerate(section.members))
    elif isinstance(section, AskSection | ScoreStep):
        yield (step.name,), section
