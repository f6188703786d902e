"""Can the functions of a recipe be called as it says? Their settings, and the columns of the rows that their parameters name.

A user's function is read and not run (`rlhf/recipe/arguments.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel

from rlhf.cli.check.first_rows import problem_with_columns
from rlhf.errors import RecipeError
from rlhf.recipe.arguments import Columns, columns_of, written_arguments
from rlhf.recipe.callables import why_missing
from rlhf.recipe.scorers import GIVEN, ScorerSection
from rlhf.recipe.sections import SourceSection
from rlhf.recipe.synthesis import ScoreStep
from rlhf.recipe.yaml_lines import KeyPath


def problem_with_settings(section: ScorerSection) -> str | None:
    """Why `kwargs` does not fit the function, or None; also for one that is not there."""
    if section.callable is None or why_missing(section.callable):
        return None
    try:
        written_arguments(section.callable, section.kwargs)
    except RecipeError as error:
        return str(error).removeprefix("kwargs: ")
    return None


def problem_with_step(step: ScoreStep) -> str | None:
    """Why the function of a step `score` cannot be called there, or None; also for one that is not there."""
    if step.callable is None or why_missing(step.callable):
        return None
    try:
        asked = written_arguments(step.callable, {})
    except RecipeError as error:
        return str(error).removeprefix("kwargs: ")
    if asked is None or not asked.needed:
        return None
    given = ", ".join(GIVEN)
    return f"{step.callable} needs {', '.join(asked.needed)}; the step score gives a function {given}, and no column of the rows"


def columns_asked(parts: Iterable[tuple[KeyPath, BaseModel]]) -> Columns:
    """The columns that the scorers among a recipe's sections read; those that cannot be called are passed over."""
    scorers = (section for _, section in parts if isinstance(section, ScorerSection))
    return columns_of([s for s in scorers if problem_with_settings(s) is None], written_arguments)


def problems_with_columns(
    scorers: Iterable[tuple[KeyPath, ScorerSection]], sources: Sequence[SourceSection]
) -> Iterator[tuple[KeyPath, str]]:
    """Each scorer with a column that a source does not have: its key, and what is wrong."""
    for path, section in scorers:
        if problem_with_settings(section) is None:
            asked = columns_of([section], written_arguments)
            found = (problem_with_columns(source, asked) for source in sources)
            if problem := next((problem for problem in found if problem), None):
                yield (*path, "columns" if section.url else "callable"), problem
