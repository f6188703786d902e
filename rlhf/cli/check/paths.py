"""Are the files, folders and models of a recipe there? What an earlier recipe of its folder makes may be missing: that is a note."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from rlhf import embedded
from rlhf.embedded import resolve
from rlhf.errors import RecipeError
from rlhf.recipe import yaml_lines

FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow|txt|gz|zst|bz2|xz|zip|tar|tgz|safetensors)$", re.IGNORECASE)
HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
STAGE_OUTPUT = re.compile(r"/(final|checkpoints/[^/]+)/?$")
NUMBERED = re.compile(r"(\d+)_.*\.ya?ml$")


def numbered_recipes(folder: Path) -> list[tuple[int, Path]]:
    """The recipes `<number>_*.yaml` of a folder, in numeric order."""
    found = ((NUMBERED.match(file.name), file) for file in folder.iterdir())
    return sorted((int(match[1]), file) for match, file in found if match)


def makers(recipe: Path) -> dict[str, Path]:
    """Which recipe writes each folder: those of the recipe's own folder that run before it, by their output_dir."""
    own = NUMBERED.match(recipe.name)
    found: dict[str, Path] = {}
    for number, file in numbered_recipes(recipe.parent):
        if file == recipe or (own is not None and number >= int(own[1])):
            continue
        try:
            data = yaml_lines.parse(file.read_text(encoding="utf-8"), str(file)).data
        except (RecipeError, OSError, ValueError):
            continue  # it says so itself when it is checked
        if isinstance(data, dict) and isinstance(data.get("output_dir"), str):
            found[data["output_dir"]] = file
    return found


def look_for_rows(path: str) -> tuple[str | None, bool]:
    """Why rows cannot be read, or None; and whether that is certain, since a path may be a hub name."""
    if path.startswith(embedded.PREFIX):
        return _embedded(path), True
    if os.path.exists(path) or (glob.has_magic(path) and next(glob.iglob(path, recursive=True), None) is not None):
        return None, True
    if glob.has_magic(path):
        return f"no file matches {path}", True
    if FILE.search(path):
        return f"no such file: {path}{_near(path)}", True
    if "/" in path and HUB_NAME.match(path):
        return f"{path} is no file or folder here (is it a hub name?)", False
    return f"no such folder: {path}{_near(path)}", True


def look_for_model(key: str, path: str) -> tuple[str | None, bool]:
    """Why a model (a folder, a run's folder, a hub name) cannot be loaded, or None; and whether that is certain."""
    if path.startswith(embedded.PREFIX):
        return _embedded(path), True
    if os.path.exists(os.path.expanduser(path)):
        return _in_folder(key, path)
    if HUB_NAME.match(path) and not STAGE_OUTPUT.search(path):
        return f"{path} is not a folder here (is it a hub name?)", False
    return f"no such folder: {path}{_near(path)}", True


def _in_folder(key: str, path: str) -> tuple[str | None, bool]:
    """The same for a folder that is there."""
    folder = Path(resolve(os.path.expanduser(path)))
    if not folder.is_dir() or key == "run":
        return None, True
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return None, True
    if (folder / "status.json").is_file():
        return f"{path} is a run that has not written its final/ yet", False
    return f"{path} holds no model: it has no config.json, and no final/ as a finished run has", True


def problem_with_reward_model(path: str) -> str | None:
    """Why a folder that is there cannot score completions, or None; one that is not there is looked at elsewhere."""
    if path.startswith(embedded.PREFIX):
        folder, there = None, path in embedded.NAMES
    else:
        folder = Path(resolve(path))
        there = (folder / "config.json").is_file()
    if not there or (folder is not None and (folder / "head.safetensors").is_file()):
        return None
    return f"{path} is no reward model: it has no head.safetensors; give the folder of a run with method: reward"


def _embedded(path: str) -> str | None:
    return None if path in embedded.NAMES else embedded.unknown(path)


def maker_of(path: str, makers: Mapping[str, Path]) -> Path | None:
    """The recipe that writes the path, by the output folders of recipes."""
    return next((file for folder, file in makers.items() if will_be_made(path, [folder])), None)


def will_be_made(path: str, folders: Collection[str]) -> bool:
    """Whether an earlier stage writes the path, so that what lies there now says nothing."""
    here = os.path.normpath(path)
    return any(here == root or here.startswith(root + os.sep) for root in map(os.path.normpath, folders))


def _near(path: str) -> str:
    folder = Path(path).parent
    siblings = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(Path(path).name, siblings, n=1)
    return f"; did you mean '{folder / near[0]}'?" if near else ""
