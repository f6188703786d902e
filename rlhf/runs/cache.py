"""A folder made once, checked always: the cache under the built-in model and data, and under tokenised rows.

On top of `rlhf.runs.manifest` (a folder is whole or not there) stands a file lock, so that two processes that want the same
folder at once make it once, and a version, so that a folder of an older rlhf is made again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from rlhf.errors import SetupError
from rlhf.runs.manifest import NAME as MANIFEST
from rlhf.runs.manifest import atomic_folder, problems

__all__ = ["MANIFEST", "folder", "root"]

MADE_BY = "made_by.txt"

# folder -> (name, size, mtime) of every file, as they were when this process last checked their hashes
_checked: dict[Path, list[tuple[str, int, int]]] = {}


def root() -> Path:
    """Where everything embedded lives: $RLHF_CACHE, else ~/.cache/rlhf. Read at each call, so tests can move it."""
    return Path(os.environ.get("RLHF_CACHE") or "~/.cache/rlhf").expanduser()


def folder(
    name: str,
    version: str,
    make: Callable[[Path], None],
    *,
    parent: Path | None = None,
    variable: str = "RLHF_CACHE",
    quiet: bool = False,
) -> Path:
    """The cached folder `name` (in `parent`, else in `root()`), made by `make(empty_folder)` if it is missing, of another
    version, or damaged; unless `quiet`, stderr says so. `variable` is the environment's word for another place.

    Raises SetupError when the cache cannot be written (read-only, full disk); what else `make` raises passes through.
    """
    target = (parent or root()) / name
    if _whole(target, version):
        return target
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{name}.lock"):
            if not _whole(target, version):  # again: another process may have made it while this one waited
                if target.exists():
                    _say(f"making {target} again: {_why(target)}")
                elif not quiet:
                    _say(f"making {target} (once)")
                with atomic_folder(target) as partial:
                    make(partial)
                    (partial / MADE_BY).write_text(version, encoding="utf-8")
                    for path in partial.rglob("*"):
                        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes 0600; a cache may be shared
        return target
    except OSError as error:
        raise SetupError(f"{target}: cannot be written: {error}; set {variable} to a folder with room") from error


def _whole(target: Path, version: str) -> bool:
    """Whether the folder is as it was made, by this version. Hashes are computed again only when a file has changed."""
    try:
        if (target / MADE_BY).read_text(encoding="utf-8") != version:
            return False
        files = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in sorted(target.rglob("*"))]
    except OSError:
        return False
    if _checked.get(target) != files:
        if problems(target):
            return False
        _checked[target] = files
    return True


def _why(target: Path) -> str:
    return "; ".join(problems(target)) or "it was made by another version"


def _say(message: str) -> None:
    print(f"rlhf: {message}", file=sys.stderr, flush=True)
