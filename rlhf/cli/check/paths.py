"""Are the files, folders and models of a recipe there? What an earlier stage will make may be missing: that is a note."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Collection
from pathlib import Path

from rlhf import embedded
from rlhf.embedded import resolve

FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow|txt|gz|zst|bz2|xz|zip|tar|tgz|safetensors)$", re.IGNORECASE)
HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
STAGE_OUTPUT = re.compile(r"/(final|checkpoints/[^/]+)/?$")


def look_for_rows(path: str, made: Collection[str]) -> tuple[str | None, str | None]:
    """(problem, note) for rows to read."""
    if path.startswith(embedded.PREFIX):
        return _embedded(path), None
    if os.path.exists(path) or will_be_made(path, made):
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


def look_for_model(key: str, path: str, made: Collection[str]) -> tuple[str | None, str | None]:
    """(problem, note) for a model to load. Keys other than `name_or_path` may name a run's folder, without /final."""
    if path.startswith(embedded.PREFIX):
        return _embedded(path), None
    if will_be_made(path, made):
        return None, None
    if os.path.exists(path):
        return _in_folder(key, path)
    clearly_local = path.startswith(("/", ".", "~")) or path.count("/") > 1
    if clearly_local and key == "name_or_path" and not STAGE_OUTPUT.search(path):
        return f"no such folder: {path}{_near(path)}", None
    if HUB_NAME.match(path) and not STAGE_OUTPUT.search(path):
        return None, f"{path} is not a folder here (made by an earlier stage, or a hub name?)"
    return None, f"{path} is not there yet (made by an earlier stage?)"


def _in_folder(key: str, path: str) -> tuple[str | None, str | None]:
    """(problem, note) for a model's folder, or a run's, that is there."""
    folder = Path(resolve(path))
    if not folder.is_dir() or key == "run":
        return None, None
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return None, None
    if (folder / "status.json").is_file():
        return None, f"{path} is a run that has not written its final/ yet"
    return f"{path} holds no model: it has no config.json, and no final/ as a finished run has", None


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


def will_be_made(path: str, folders: Collection[str]) -> bool:
    """Whether an earlier stage writes the path, so that what lies there now says nothing."""
    here = os.path.normpath(path)
    return any(here == root or here.startswith(root + os.sep) for root in map(os.path.normpath, folders))


def _near(path: str) -> str:
    folder = Path(path).parent
    siblings = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(Path(path).name, siblings, n=1)
    return f"; did you mean '{folder / near[0]}'?" if near else ""
