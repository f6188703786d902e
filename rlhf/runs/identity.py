"""What a file, a model or a function is, as a short text: two are equal when the contents are.

The one rule for everything that must not change unseen: what a resumed run was trained with, what tokens and journals were
made from, what a stage of a folder has read. Contents decide, not times: a file's hash is computed once and remembered by
its size and times.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rlhf.recipe.callables import source_of
from rlhf.runs import cache
from rlhf.runs.manifest import NAME as MANIFEST
from rlhf.runs.manifest import sha256

HASH = re.compile(r"[0-9a-f]{32,64}")
SETTLED = 2.0  # seconds: coarser than the clock of any file system


def of_file(path: Path) -> str:
    """The SHA-256 of a file's content. A file that changed in the last seconds is not remembered: it may change again
    within one tick of the file system's clock. Raises OSError for a file that cannot be read.
    """
    stat = path.stat()
    times = f"{stat.st_mtime_ns}\n{stat.st_ctime_ns}"  # a program may set the first time, none can set the second
    about = hashlib.sha256(f"{path.resolve()}\n{stat.st_size}\n{times}\n{stat.st_ino}".encode()).hexdigest()
    known = cache.root() / "digests" / about[:32]
    with suppress(OSError):
        return known.read_text()
    digest = sha256(path)
    if time.time() - stat.st_ctime > SETTLED:
        partial = known.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # remembering only saves time, so a cache that cannot be written is no error
            known.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(digest)
            partial.replace(known)
    return digest


def of_folder(folder: Path) -> str:
    """A hash of the names and contents of a folder's files, but for `README.md`: a model card tells how long a run took.

    A sealed folder's manifest already holds the hashes.
    """
    sealed = folder / MANIFEST
    if sealed.is_file():
        hashes = {name: entry["sha256"] for name, entry in json.loads(sealed.read_text())["files"].items()}
    else:
        hashes = {str(path.relative_to(folder)): of_file(path) for path in folder.rglob("*") if path.is_file()}
    hashes.pop("README.md", None)
    return digest(hashes)


def of_model(name_or_path: str) -> str:
    """A model's folder (or a run's, whose model lies in `final/`) by its content; a hub name by its downloaded revision."""
    folder = Path(name_or_path).expanduser()
    if (folder / "final").is_dir():
        folder = folder / "final"
    if folder.is_dir():
        return of_folder(folder)
    return f"{name_or_path}@{_revision(name_or_path) or 'not downloaded'}"


def of_callable(spec: str) -> str:
    """`module:function` or `file.py:function` by the source of its module, which is found and not run.

    What that module imports is not looked at. A module without a source file stands for itself.
    """
    source = source_of(spec)
    return of_file(source) if source is not None else spec


def digest(content: object) -> str:
    """A hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def changes(before: object, after: object, key: str = "") -> list[str]:
    """What differs between two nests of dicts, a line each: `training.learning_rate: 0.001 then, 0.01 now`."""
    if isinstance(before, dict) and isinstance(after, dict):
        names: Sequence[str] = list(dict.fromkeys([*before, *after]))
        return [
            line
            for name in names
            for line in changes(before.get(name), after.get(name), f"{key}.{name}" if key else name)
        ]
    if before == after:
        return []
    if all(isinstance(side, str) and HASH.fullmatch(side) for side in (before, after)):
        return [f"{key}: its content has changed"]
    return [f"{key}: {_shown(before)} then, {_shown(after)} now"]


def _shown(value: object) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _revision(name: str) -> str | None:
    """The revision of a hub model in the local cache: the name of the folder that its files lie in."""
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # not a hub name
        found = try_to_load_from_cache(name, "config.json")
        if isinstance(found, str):
            return Path(found).parent.name
    return None
