"""What `rlhf data stats` and `lint` read: data or a recipe, as splits of sources, with what training does with them.

a folder            every split in it: `rlhf data build`'s own, or any that `datasets` writes
a file, a glob      one split, `all`; overrides are keys of a source, e.g. format=hh columns.prompt=question
embedded:NAME       its splits
a data recipe       its sources, before its steps
a training recipe   data.train and data.eval, with its tokenizer, template and max_length
generate, eval      their prompts, and eval's preferences
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.data.readers.names import TABLES
from rlhf.errors import RecipeError
from rlhf.recipe import overrides as overriding
from rlhf.recipe import yaml_lines
from rlhf.recipe.loader import load
from rlhf.recipe.online import OnlineRecipe
from rlhf.recipe.schema import DataRecipe, EvalRecipe, GenerateRecipe
from rlhf.recipe.sections import SourceSection, TemplateSection
from rlhf.recipe.training import TrainRecipe

ALL = "all"  # the one split of a file
FIRST = ("train", "validation", "eval", "test")  # splits in the order in which they are shown; others follow by name
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Target:
    """Splits of sources, and what is known about the training that uses them."""

    name: str
    splits: dict[str, list[SourceSection]]
    seed: int = 0
    built: bool = False  # a folder that `rlhf data build` wrote
    method: str | None = None
    tokenizer: str | None = None
    template: TemplateSection | None = None
    max_length: int | None = None  # of a row, for PPO of a prompt
    on_overflow: str | None = None


def target_of(name: str, overrides: Sequence[str] = ()) -> Target:
    """The target that a name on the command line stands for. Raises RecipeError as the recipe loader does."""
    if name.endswith((".yaml", ".yml")):
        return _of_recipe(name, overrides)
    source = _source(name, overrides)
    folder = _folder(name)
    if folder is None or source.split is not None:
        return Target(name, {source.split or ALL: [source]})
    splits = _splits_in(folder) or [None]
    return Target(
        name,
        {split or ALL: [source.model_copy(update={"split": split})] for split in splits},
        built=(folder / "report.json").is_file() and (folder / "quarantine.jsonl").is_file(),
    )


def _of_recipe(path: str, overrides: Sequence[str]) -> Target:
    recipe = load(path, overrides)
    if isinstance(recipe, DataRecipe):
        return Target(path, {ALL: recipe.sources}, recipe.seed)
    if isinstance(recipe, GenerateRecipe):
        return Target(path, {"prompts": recipe.prompts}, recipe.seed, template=recipe.template)
    if isinstance(recipe, EvalRecipe):
        splits = {"prompts": recipe.prompts, "preferences": recipe.preferences}
        return Target(path, {k: v for k, v in splits.items() if v}, recipe.seed, template=recipe.template)
    assert isinstance(recipe, TrainRecipe)
    data = recipe.data
    room = recipe.online.sampling.max_new_tokens if isinstance(recipe, OnlineRecipe) else 0
    return Target(
        path,
        {k: v for k, v in {"train": data.train, "eval": data.eval}.items() if v},
        recipe.seed,
        method=recipe.method,
        tokenizer=recipe.model.name_or_path,
        template=data.template,
        max_length=data.max_length - room,
        on_overflow=data.on_overflow,
    )


def _source(path: str, overrides: Sequence[str]) -> SourceSection:
    """The source that a path and `key=value`s describe. The rules and the messages are those of a recipe."""
    place = yaml_lines.Place(path)
    document = yaml_lines.Document({"path": path}, {(): place, ("path",): place})
    overriding.apply(document, overrides)
    problems = [f"{where}: {message}" for where, message in document.problems]
    if problems:
        raise RecipeError(problems)
    from pydantic import ValidationError

    try:
        return SourceSection.model_validate(document.data)
    except ValidationError as error:
        from rlhf.recipe import explain

        found = explain.explain(error, SourceSection, document)
        raise RecipeError([f"{where}: {message}" for where, message in found]) from None


def _folder(name: str) -> Path | None:
    from rlhf.embedded import resolve

    path = resolve(name)
    return Path(path) if os.path.isdir(path) else None


def _splits_in(folder: Path) -> list[Any]:
    """The names of a folder's splits: its subfolders of tables, `<split>-00000-of-00001.*` (also under data/), `<split>.*`."""
    found = {p.parent.name for p in folder.glob("*/*") if p.suffix in TABLES and p.parent.name != "data"}
    shards = [p for pattern in ("*", "data/*") for p in folder.glob(pattern) if p.suffix in TABLES and p.is_file()]
    found |= {match[1] for p in shards if (match := _SHARD.match(p.stem))}
    found |= {p.stem for p in shards if p.parent == folder and p.stem in FIRST}
    return sorted(found, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
