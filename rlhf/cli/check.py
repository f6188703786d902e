"""What `rlhf check` can tell without loading anything heavy: do the files, folders and callables of a recipe exist?

After the schema, before any stage. A path that an earlier stage will make is not an error, only a note; a misspelt file
or function is found here and not an hour into a run.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from rlhf import embedded
from rlhf.generation.context import problems_of
from rlhf.recipe.callables import why_missing
from rlhf.recipe.loader import Loaded
from rlhf.recipe.schema import DataRecipe, PairJudgeSection
from rlhf.recipe.sections import ScorerSection, SourceSection
from rlhf.recipe.synthesis import OpenaiSection, ScoreStep
from rlhf.recipe.yaml_lines import KeyPath, dotted
from rlhf.synthesis.checks import problems

FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow|txt|gz|zst|bz2|xz|zip|tar|tgz|safetensors)$", re.IGNORECASE)
HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
STAGE_OUTPUT = re.compile(r"/(final|checkpoints/[^/]+)/?$")
MODEL_KEYS = {"name_or_path", "model", "value_model", "reward_model", "reference", "run"}


@dataclass
class Findings:
    """What must be mended before a run, and what is only worth knowing."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(loaded: Loaded, made: Collection[str] = ()) -> Findings:
    """Look up what the recipe names. `made` are the output folders of stages that will have run before this one."""
    findings = Findings()
    for path, section in _sections(loaded.recipe):
        if isinstance(section, SourceSection):
            _look(loaded, (*path, "path"), _data_path(section.path, made), findings)
        models = () if isinstance(section, OpenaiSection) else MODEL_KEYS  # a server's names are its own
        for key in [key for key in type(section).model_fields if key in models]:
            value = getattr(section, key)
            if isinstance(value, str) and (key, value) != ("reference", "initial"):
                _look(loaded, (*path, key), _model_path(key, value, made), findings)
        if isinstance(section, ScorerSection | PairJudgeSection | ScoreStep) and section.callable is not None:
            reason = why_missing(section.callable)
            _look(loaded, (*path, "callable"), (reason, None), findings)
    if isinstance(loaded.recipe, DataRecipe):
        for key, problem in problems(loaded.recipe):
            _look(loaded, key, (problem, None), findings)
    for key, problem in problems_of(loaded.recipe):
        _look(loaded, key, (problem, None), findings)
    return findings


def _look(loaded: Loaded, path: KeyPath, verdict: tuple[str | None, str | None], findings: Findings) -> None:
    problem, note = verdict
    where = f"{loaded.place(path)}: {dotted(path)}"
    if problem:
        findings.problems.append(f"{where}: {problem}")
    if note:
        findings.notes.append(f"{where}: {note}")


def _sections(section: BaseModel, path: KeyPath = ()) -> Iterator[tuple[KeyPath, BaseModel]]:
    yield path, section
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _sections(value, (*path, name))
        elif isinstance(value, list | dict):
            for index, item in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(item, BaseModel):
                    yield from _sections(item, (*path, name, index))


def _data_path(path: str, made: Collection[str]) -> tuple[str | None, str | None]:
    """(problem, note) for rows to read."""
    if path.startswith(embedded.PREFIX):
        return _embedded(path), None
    if os.path.exists(path) or _under(path, made):
        return None, None
    if glob.has_magic(path):
        if next(glob.iglob(path, recursive=True), None) is not None:
            return None, None
        base = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        if base and not os.path.isdir(base):
            return None, f"{base} is not there yet (made by an earlier stage?)"
        return f"no file matches {path}", None
    if FILE.search(path):
        return f"no such file: {path}{_near(path)}", None
    if "/" in path and HUB_NAME.match(path):
        return None, f"{path} is no file or folder here (made by an earlier stage, or a hub name?)"
    return None, f"{path} is not there yet (made by an earlier stage?)"


def _model_path(key: str, path: str, made: Collection[str]) -> tuple[str | None, str | None]:
    """(problem, note) for a model to load. Keys other than `name_or_path` may name a run's folder, without /final."""
    if path.startswith(embedded.PREFIX):
        return _embedded(path), None
    if os.path.exists(path) or _under(path, made):
        return None, None
    clearly_local = path.startswith(("/", ".", "~")) or path.count("/") > 1
    if clearly_local and key == "name_or_path" and not STAGE_OUTPUT.search(path):
        return f"no such folder: {path}{_near(path)}", None
    if HUB_NAME.match(path) and not STAGE_OUTPUT.search(path):
        return None, f"{path} is not a folder here (made by an earlier stage, or a hub name?)"
    return None, f"{path} is not there yet (made by an earlier stage?)"


def _embedded(path: str) -> str | None:
    return None if path in embedded.NAMES else embedded.unknown(path)


def _under(path: str, folders: Collection[str]) -> bool:
    here = os.path.normpath(path)
    return any(here == root or here.startswith(root + os.sep) for root in map(os.path.normpath, folders))


def _near(path: str) -> str:
    folder = Path(path).parent
    siblings = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(Path(path).name, siblings, n=1)
    return f"; did you mean '{folder / near[0]}'?" if near else ""
