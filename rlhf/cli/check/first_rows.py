"""Do the first rows of a recipe's sources fit? Reads a few rows of each, as training would, and imports no torch.

Finds what would otherwise stop a run at its first read: a mapped column that is not there, a format that does not fit,
rows that the method does not train on, rows of messages without a chat template.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf import embedded
from rlhf.embedded import resolve
from rlhf.errors import DataError, RecipeError
from rlhf.recipe.arguments import NONE, Columns
from rlhf.recipe.sections import SourceSection, TemplateSection
from rlhf.recipe.training import TrainRecipe

if TYPE_CHECKING:
    from rlhf.data.rows import Located

ROWS = 100  # as many as the format is recognised by
BYTES = 2**28  # a file over this size is not opened where it has to be read whole


def head(source: SourceSection) -> list[Located]:
    """The first raw rows of a source; none for rows elsewhere. Raises DataError where there are none, or they cannot be read."""
    from rlhf.data.rows import Quarantine
    from rlhf.data.sources import read

    if source.path.startswith(embedded.PREFIX) or not _is_small(source):
        return []
    quarantine = Quarantine()
    rows = list(islice(read(source.model_copy(update={"where": None}), quarantine), ROWS))
    if not rows:
        if quarantine.entries:
            entry = quarantine.entries[0]
            raise DataError(str(entry["file"]), str(entry["reason"]), row=entry["row"], field=entry["field"])
        raise DataError(source.path, "holds no rows")
    return rows


def first_kind(source: SourceSection, kinds: Collection[str] | None, keep: Columns) -> tuple[str | None, bool]:
    """The kind of the source's first usable row, and whether its prompt is messages; (None, False) for rows elsewhere.

    `kinds` are the kinds of row that the method takes, as in `choose`; `keep` are the columns that its scorers read.

    Raises DataError or RecipeError where the rows cannot be read as the source says.
    """
    from rlhf.data.formats import convert
    from rlhf.data.recognise_format import choose
    from rlhf.data.rows import kind_of

    rows = head(source)
    if not rows:
        return None, False
    format = choose(rows, source, kinds, keep.may_be_mapped(source.columns))
    refused: DataError | None = None
    for located in rows:
        try:
            row = convert(located, format, source)
            return kind_of(row), not isinstance(row["prompt"], str)
        except DataError as error:
            refused = refused or error
    assert refused is not None
    raise DataError(
        refused.file,
        f"{refused.reason} (and no other of the first {len(rows)} rows can be used)",
        row=refused.row,
        field=refused.field,
    )


def problem_with_source(
    source: SourceSection, kinds: Collection[str] | None = None, keep: Columns = NONE
) -> str | None:
    """Why the source's first rows cannot be used, or None."""
    try:
        first_kind(source, kinds, keep)
    except (DataError, RecipeError) as error:
        return str(error)
    return None


def problem_with_columns(source: SourceSection, keep: Columns) -> str | None:
    """Why the source's columns do not do for the scorers, or None."""
    from rlhf.data.sources import columns_in

    try:
        rows = head(source) if keep else []
    except (DataError, RecipeError):
        return None  # said for the source itself
    return keep.problem_with(columns_in(rows, source), source.path) if rows else None


def problem_with_kind(
    recipe: TrainRecipe, source: SourceSection, keep: Columns = NONE, *, kinds: frozenset[str] | None = None
) -> str | None:
    """Why the method cannot train on the source's rows, or None. `kinds` are the method's own if they are left out."""
    kinds = kinds or recipe.row_kinds
    try:
        kind, messages = first_kind(source, kinds, keep)
    except (DataError, RecipeError):
        return None  # said for the source itself
    taken = kinds
    if "prompt" in taken:  # prompts can be had from any row
        taken = taken | {kind or ""}
    if taken == {"demonstration"}:
        taken = taken | {"preference", "unpaired"}
    if kind is not None and kind not in taken:
        wanted = " or ".join(sorted(kinds))
        return f"these are {kind} rows, and method: {recipe.method} trains on {wanted} rows (see format: and columns:)"
    if messages and recipe.data.template.kind == "plain":
        return "the rows are messages, which need a chat template; set data.template.kind: chat"
    if messages and recipe.data.template.kind == "auto" and not may_have_chat_template(recipe.model.name_or_path):
        model = recipe.model.name_or_path
        return f"the rows are messages, which need a chat template, and the tokenizer of {model} has none"
    return None


def problem_with_template(template: TemplateSection, model: str) -> str | None:
    """Why the template cannot be used with the model's tokenizer, or None; a model that is not here is not looked at."""
    if template.kind != "chat" or may_have_chat_template(model):
        return None
    return f"chat, but the tokenizer of {model} has no chat template; set kind: plain, or take a model that has one"


def may_have_chat_template(model: str) -> bool:
    """Whether the model's tokenizer has a chat template, as far as its files tell; True where they are not here."""
    folder = _model_folder(model)
    if folder is None or not (folder / "tokenizer_config.json").is_file():
        return True
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    if any((folder / "additional_chat_templates").glob("*.jinja")):
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return True  # loading the tokenizer will say more


def _model_folder(model: str) -> Path | None:
    if model.startswith(embedded.PREFIX):
        from rlhf.runs import cache

        return cache.root() / model.removeprefix(embedded.PREFIX)
    return Path(resolve(model))


def _is_small(source: SourceSection) -> bool:
    """Whether the source is here, and its first rows can be had without reading a large file."""
    if not os.path.exists(source.path):
        return False
    return os.path.isdir(source.path) or not source.path.endswith(".json") or os.path.getsize(source.path) < BYTES
