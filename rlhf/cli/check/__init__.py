"""What `rlhf check` can tell of a recipe without loading anything heavy.

`paths`: are its files, folders and models there? `first_rows`: do the first rows of its sources fit? A path that an earlier recipe of the same folder makes is
not an error, only a note; before a run (`refuse_absent`) it is an error.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlhf.cli.check import first_rows
from rlhf.cli.check.paths import (
    look_for_model,
    look_for_rows,
    maker_of,
    makers,
    problem_with_reward_model,
    will_be_made,
)
from rlhf.cli.check.scorers import columns_asked, problem_with_settings, problem_with_step, problems_with_columns
from rlhf.embedded import PREFIX
from rlhf.errors import RecipeError
from rlhf.generation.context import problems_of as problems_with_context
from rlhf.generation.rollouts.command import forecast
from rlhf.models.lineage import problem_with_policy, problem_with_template
from rlhf.recipe.callables import why_missing
from rlhf.recipe.loader import Loaded, examine, lines
from rlhf.recipe.online import OnlineRecipe
from rlhf.recipe.schema import AnyRecipe, DataRecipe, EvalRecipe, GenerateRecipe, PairJudgeSection
from rlhf.recipe.scorers import ScorerSection
from rlhf.recipe.sections import Recipe, SourceSection
from rlhf.recipe.synthesis import OpenaiSection, ScoreStep, VllmSection
from rlhf.recipe.training import RewardRecipe, TrainRecipe
from rlhf.recipe.walk import sections, sections_that_stand
from rlhf.recipe.yaml_lines import Document, KeyPath, Place, dotted
from rlhf.synthesis.checks import problems_of as problems_with_steps

__all__ = ["Findings", "check", "read_and_check", "refuse_absent"]

MODEL_KEYS = {"name_or_path", "model", "value_model", "reward_model", "reference", "run"}


@dataclass
class Findings:
    """What must be mended before a run, and what is only worth knowing."""

    document: Document
    wrong: list[tuple[Place, str]] = field(default_factory=list)
    noted: list[tuple[Place, str]] = field(default_factory=list)
    awaited: list[tuple[Place, str]] = field(default_factory=list)  # what an earlier recipe makes, and has not made yet

    def problem(self, path: KeyPath, message: str | None) -> None:
        if message:
            self.wrong.append((self.document.place(path), f"{dotted(path)}: {message}"))

    def note(self, path: KeyPath, message: str | None) -> None:
        if message:
            self.noted.append((self.document.place(path), f"{dotted(path)}: {message}"))

    def absent(self, path: KeyPath, name: str, reason: str | None, *, certain: bool) -> None:
        """Sort what is not there: awaited, a mistake where that is certain, else a note. No reason: it is there."""
        if reason is None:
            return
        maker = maker_of(name, self.makers)
        if maker is not None:
            message = f"{dotted(path)}: {name} is not there yet; {maker} makes it"
            self.awaited.append((self.document.place(path), message))
        elif certain:
            self.problem(path, reason)
        else:
            self.note(path, reason)

    @cached_property
    def makers(self) -> dict[str, Path]:
        """The recipes of the same folder that run before this one, by the folder that each writes."""
        recipe = Path(self.document.place(()).source)
        return makers(recipe) if recipe.is_file() else {}

    @property
    def problems(self) -> list[str]:
        """A line for each thing that must be mended."""
        return lines(self.wrong)

    @property
    def notes(self) -> list[str]:
        """A line for each thing that is worth knowing."""
        return lines(sorted([*self.noted, *self.awaited], key=_in_file_order))


def _in_file_order(found: tuple[Place, str]) -> tuple[bool, int]:
    return found[0].line == 0, found[0].line  # overrides last


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
        _look_up(sections_that_stand(examined.schema, examined.document.data), found, made, examined.schema)
    raise RecipeError(lines(sorted([*examined.document.problems, *found.wrong], key=_in_file_order)))


def refuse_absent(loaded: Loaded) -> None:
    """Raises RecipeError, before anything heavy is imported, where a file or folder that the run reads is not there."""
    found = Findings(loaded.document)
    for path, section in sections(loaded.recipe):
        _look_for_paths(path, section, found, (), MODEL_KEYS - {"run"})  # a report says itself which runs are missing
        _look_for_policies(path, section, found, (), type(loaded.recipe))
    first = "; run that first, or all in order: rlhf run"
    awaited = [(place, f"{message}{first} {Path(place.source).parent}") for place, message in found.awaited]
    if wrong := sorted([*found.wrong, *awaited], key=_in_file_order):
        raise RecipeError(lines(wrong))


def check(loaded: Loaded, made: Collection[str] = ()) -> Findings:
    """Look up what the recipe names. `made` are the output folders of stages that will have run before this one."""
    found = Findings(loaded.document)
    recipe = loaded.recipe
    parts = list(sections(recipe))
    _look_up(parts, found, made, type(recipe))
    _look_for_columns(parts, found, made)
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
                    reason = first_rows.problem_with_kind(recipe, source, columns_asked(parts))
                    found.problem(("data", name, number, "path"), reason)
        for number, source in enumerate(recipe.given):
            if not will_be_made(source.path, made):
                reason = first_rows.problem_with_kind(recipe, source, kinds=frozenset({"demonstration"}))
                found.problem((recipe.method, "ptx", "train", number, "path"), reason)
        reason = first_rows.problem_with_template(recipe.data.template, recipe.model.name_or_path)
        found.problem(("data", "template", "kind"), reason)
    judge = recipe.reward_model if isinstance(recipe, EvalRecipe) else None
    if judge is not None and not will_be_made(judge, made):
        found.problem(("reward_model",), problem_with_reward_model(judge))
    _look_for_templates(recipe, found, made)
    if isinstance(recipe, OnlineRecipe) and recipe.online.rollouts is not None:
        try:
            found.note((recipe.method, "rollouts"), forecast(recipe))
        except RecipeError as error:
            found.problem((recipe.method, "rollouts"), str(error))
    return found


def _look_for_templates(recipe: AnyRecipe, found: Findings, made: Collection[str]) -> None:
    """Refuse a reward model that was trained with another template than that of the recipe's prompts."""
    if isinstance(recipe, OnlineRecipe):
        template = recipe.data.template
    elif isinstance(recipe, GenerateRecipe | EvalRecipe):
        template = recipe.template
    else:
        return
    named: dict[KeyPath, str | None] = {
        (*path, *key): model
        for path, section in sections(recipe)
        if isinstance(section, ScorerSection) and not section.other_template
        for key, model in section.model_keys.items()
    }
    if isinstance(recipe, EvalRecipe):
        named["reward_model",] = recipe.reward_model
    for key, model in named.items():
        if model is not None and not will_be_made(model, made):
            found.problem(key, problem_with_template(model, template))


def _look_for_columns(parts: Iterable[tuple[KeyPath, BaseModel]], found: Findings, made: Collection[str]) -> None:
    """Refuse a scorer that reads a column of the rows which a source of prompts does not have."""
    scorers = [(path, section) for path, section in parts if isinstance(section, ScorerSection)]
    # an evaluation's `preferences` are no prompts: its scorers never see them
    sources = [s for path, s in parts if isinstance(s, SourceSection) and path[0] in ("data", "prompts")]
    for key, problem in problems_with_columns(scorers, [s for s in sources if not will_be_made(s.path, made)]):
        found.problem(key, problem)


def _look_for_paths(
    path: KeyPath, section: BaseModel, found: Findings, made: Collection[str], keys: Collection[str] = MODEL_KEYS
) -> None:
    """Look for the files and folders that a section names, but not for those in `made`."""
    if isinstance(section, SourceSection) and not will_be_made(section.path, made):
        reason, certain = look_for_rows(section.path)
        found.absent((*path, "path"), section.path, reason, certain=certain)
    models = () if isinstance(section, OpenaiSection) else keys  # a server's names are its own
    named: dict[KeyPath, Any] = {(key,): getattr(section, key) for key in type(section).model_fields if key in models}
    if isinstance(section, ScorerSection):
        named |= section.model_keys
    for at, value in named.items():
        key = str(at[0])
        if isinstance(value, str) and (key, value) != ("reference", "initial") and not will_be_made(value, made):
            reason, certain = look_for_model(key, value)
            found.absent((*path, *at), value, reason, certain=certain)


def _look_for_policies(
    path: KeyPath, section: BaseModel, found: Findings, made: Collection[str], schema: type[Recipe]
) -> None:
    """Refuse a reward model where a section names a language model."""
    if schema is RewardRecipe:  # it starts from either
        return
    keys = {"name_or_path", "reference", "adapter"} | ({"model"} if isinstance(section, VllmSection) else set())
    for key in [key for key in type(section).model_fields if key in keys]:
        value = getattr(section, key)
        if isinstance(value, str) and not value.startswith(PREFIX) and not will_be_made(value, made):
            found.problem((*path, key), problem_with_policy(value))


def _look_up(
    parts: Iterable[tuple[KeyPath, BaseModel]], found: Findings, made: Collection[str], schema: type[Recipe]
) -> None:
    """Look for the files, models and functions that each section names."""
    parts = list(parts)
    for path, section in parts:
        _look_for_paths(path, section, found, made)
        _look_for_policies(path, section, found, made, schema)
        if isinstance(section, SourceSection) and not will_be_made(section.path, made):
            kinds = schema.row_kinds if issubclass(schema, TrainRecipe) else None
            found.problem((*path, "path"), first_rows.problem_with_source(section, kinds, columns_asked(parts)))
        if isinstance(section, ScorerSection):
            found.problem((*path, "kwargs"), problem_with_settings(section))
            models: dict[KeyPath, str] = {**section.model_keys}
        else:
            models = {("model",): section.model} if isinstance(section, ScoreStep) and section.model else {}
        for key, name in models.items():
            if not will_be_made(name, made):
                found.problem((*path, *key), problem_with_reward_model(name))
        if isinstance(section, ScoreStep):
            found.problem((*path, "callable"), problem_with_step(section))
        if isinstance(section, ScorerSection | PairJudgeSection | ScoreStep) and section.callable is not None:
            found.problem((*path, "callable"), why_missing(section.callable))
