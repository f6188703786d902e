"""What `rlhf check` can tell of a recipe without loading anything heavy.

`paths`: are its files, folders and models there? `first_rows`: do the first rows of its sources fit? A path that an earlier stage will make is not an error, only a note.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from rlhf.cli.check import first_rows
from rlhf.cli.check.paths import look_for_model, look_for_rows, problem_with_reward_model, will_be_made
from rlhf.errors import RecipeError
from rlhf.generation.context import problems_of as problems_with_context
from rlhf.recipe.callables import why_missing
from rlhf.recipe.loader import Loaded, examine, lines
from rlhf.recipe.schema import DataRecipe, EvalRecipe, PairJudgeSection
from rlhf.recipe.sections import ScorerSection, SourceSection
from rlhf.recipe.synthesis import OpenaiSection, ScoreStep
from rlhf.recipe.training import TrainRecipe
from rlhf.recipe.walk import sections, sections_that_stand
from rlhf.recipe.yaml_lines import Document, KeyPath, Place, dotted
from rlhf.synthesis.checks import problems_of as problems_with_steps

__all__ = ["Findings", "check", "read_and_check"]

MODEL_KEYS = {"name_or_path", "model", "value_model", "reward_model", "reference", "run"}


@dataclass
class Findings:
    """What must be mended before a run, and what is only worth knowing."""

    document: Document
    wrong: list[tuple[Place, str]] = field(default_factory=list)
    noted: list[tuple[Place, str]] = field(default_factory=list)

    def problem(self, path: KeyPath, message: str | None) -> None:
        if message:
            self.wrong.append((self.document.place(path), f"{dotted(path)}: {message}"))

    def note(self, path: KeyPath, message: str | None) -> None:
        if message:
            self.noted.append((self.document.place(path), f"{dotted(path)}: {message}"))

    @property
    def problems(self) -> list[str]:
        """A line for each thing that must be mended."""
        return lines(self.wrong)

    @property
    def notes(self) -> list[str]:
        """A line for each thing that is worth knowing."""
        return lines(self.noted)


def read_and_check(
    path: str | Path, overrides: Sequence[str] = (), made: Collection[str] = ()
) -> tuple[Loaded, Findings]:
    """The recipe and what was found. Raises RecipeError with the schema's complaints and the missing files together."""
    examined = examine(path, overrides)
    if examined.recipe is not None and not examined.document.problems:
        loaded = Loaded(examined.recipe, examined.document)
        return loaded, check(loaded, made)
    found = Findings(examined.document)
    if examined.schema is not None:
        _look_up(sections_that_stand(examined.schema, examined.document.data), found, made)
    together = [*examined.document.problems, *found.wrong]
    raise RecipeError(lines(sorted(together, key=lambda problem: (problem[0].line == 0, problem[0].line))))


def check(loaded: Loaded, made: Collection[str] = ()) -> Findings:
    """Look up what the recipe names. `made` are the output folders of stages that will have run before this one."""
    found = Findings(loaded.document)
    recipe = loaded.recipe
    _look_up(sections(recipe), found, made)
    if isinstance(recipe, DataRecipe):
        for key, problem in problems_with_steps(recipe):
            found.problem(key, problem)
    for key, problem in problems_with_context(recipe):
        found.problem(key, problem)
    if isinstance(recipe, TrainRecipe):
        if shared := recipe.problem_with(int(os.environ.get("WORLD_SIZE", "1"))):
            found.problem(tuple(shared[0].split(".")), shared[1])
        for name, sources in (("train", recipe.data.train), ("eval", recipe.data.eval)):
            for number, source in enumerate(sources):
                if not will_be_made(source.path, made):
                    found.problem(("data", name, number, "path"), first_rows.problem_with_kind(recipe, source))
        reason = first_rows.problem_with_template(recipe.data.template, recipe.model.name_or_path)
        found.problem(("data", "template", "kind"), reason)
    judge = recipe.reward_model if isinstance(recipe, EvalRecipe) else None
    if judge is not None and not will_be_made(judge, made):
        found.problem(("reward_model",), problem_with_reward_model(judge))
    return found


def _look_up(parts: Iterable[tuple[KeyPath, BaseModel]], found: Findings, made: Collection[str]) -> None:
    """Look for the files, models and functions that each section names."""
    for path, section in parts:
        if isinstance(section, SourceSection):
            problem, note = look_for_rows(section.path, made)
            if not problem and not will_be_made(section.path, made):
                problem = first_rows.problem_with_source(section)
            found.problem((*path, "path"), problem)
            found.note((*path, "path"), note)
        models = () if isinstance(section, OpenaiSection) else MODEL_KEYS  # a server's names are its own
        for key in [key for key in type(section).model_fields if key in models]:
            value = getattr(section, key)
            if isinstance(value, str) and (key, value) != ("reference", "initial"):
                problem, note = look_for_model(key, value, made)
                found.problem((*path, key), problem)
                found.note((*path, key), note)
        scorer = section.model if isinstance(section, ScorerSection | ScoreStep) else None
        if scorer is not None and not will_be_made(scorer, made):
            found.problem((*path, "model"), problem_with_reward_model(scorer))
        if isinstance(section, ScorerSection | PairJudgeSection | ScoreStep) and section.callable is not None:
            found.problem((*path, "callable"), why_missing(section.callable))
