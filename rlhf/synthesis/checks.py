"""What can be told of a recipe's model steps before a model is asked: prompts that cannot be used, settings that an engine has not.

For `rlhf check`, and for `steps` before the first request: a mistake in the last step must not come out when the others are paid for.
Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import RecipeError
from ..generation.engines.sampling import unsupported
from ..recipe.schema import DataRecipe
from ..recipe.steps import DataStep
from ..recipe.synthesis import AskSection, PoolStep, ScoreStep
from .prompts import template

Key = tuple[str | int, ...]


def problems(recipe: DataRecipe) -> Iterator[tuple[Key, str]]:
    """Each fault's key in the recipe, and what it is."""
    for number, step in enumerate(recipe.steps):
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


def _asking(step: DataStep) -> Iterator[tuple[Key, AskSection | ScoreStep]]:
    section = step.model_step
    if isinstance(section, PoolStep):
        yield from (((step.name, "members", i), member) for i, member in enumerate(section.members))
    elif isinstance(section, AskSection | ScoreStep):
        yield (step.name,), section
