"""A folder made once, checked always: the cache under the built-in model and data.

A folder is built beside its final place, synced, described by a manifest (sizes and SHA-256 of every file, and the version
of whatever made it), and only then renamed into place. So a folder under its own name is whole, or its manifest says it is
not. Two processes that want the same folder at once make it once: the second waits on a file lock.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import SetupError

MANIFEST = "manifest.json"

# folder -> file -> (size, mtime) of the files whose hashes this process has checked
_hashed: dict[Path, dict[str, tuple[int, int]]] = {}


def root() -> Path:
    """Where everything embedded lives: $RLHF_CACHE, else ~/.cache/rlhf. Read at each call, so tests can move it."""
    return Path(os.environ.get("RLHF_CACHE") or "~/.cache/rlhf").expanduser()


def folder(name: str, version: str, make: Callable[[Path], None]) -> Path:
    """The cached folder `name`, made by `make(empty_folder)` if it is missing, of another version, or damaged.

    Raises SetupError when the cache cannot be written (read-only, full disk); what `make` raises passes through.
    """
    target = root() / name
    if _problem(target, version) is None:
        return target
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{name}.lock"):
            problem = _problem(target, version)  # again: another process may have made it while this one waited
            if problem is not None:
                if target.exists():
                    _say(f"{target}: {problem}: making it again")
                _make(target, version, make)
        return target
    except OSError as error:
        raise SetupError(f"{target}: cannot be written: {error}; set RLHF_CACHE to a folder with room") from error


def sha256(path: Path) -> str:
    """The file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(target: Path, version: str, make: Callable[[Path], None]) -> None:
    """Build, describe, sync, rename. The caller holds the lock, so fixed temporary names are safe and cannot pile up."""
    partial, old = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    _say(f"making {target} (once)")
    make(partial)
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    described = {
        str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }
    manifest = partial / MANIFEST
    manifest.write_text(json.dumps({"version": version, "files": described}, indent=2) + "\n", encoding="utf-8")
    for path in [*files, manifest]:
        path.chmod(0o644)  # a cache may be shared; safetensors writes 0600
    for path in [*files, manifest, *(path for path in partial.rglob("*") if path.is_dir()), partial]:
        _sync(path)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _problem(target: Path, version: str) -> str | None:
    """What is wrong with a cached folder, or None. Sizes every time; hashes again only when a file changed since."""
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        made_by, files = manifest["version"], dict(manifest["files"])
    except FileNotFoundError:
        return "no manifest"
    except (ValueError, KeyError, TypeError):
        return "the manifest is not readable"
    if made_by != version:
        return f"made by version {made_by}, now {version}"
    known, checked = _hashed.get(target, {}), {}
    for relative, expected in files.items():
        path = target / relative
        if not path.is_file():
            return f"{relative} is missing"
        stat = path.stat()
        if stat.st_size != expected["bytes"]:
            return f"{relative} has {stat.st_size} bytes, not {expected['bytes']}"
        checked[relative] = (stat.st_size, stat.st_mtime_ns)
        if known.get(relative) != checked[relative] and sha256(path) != expected["sha256"]:
            return f"{relative} does not match its SHA-256"
    _hashed[target] = checked
    return None


def _sync(path: Path) -> None:
    """Force a file or folder to the disk, so that a rename never points at bytes that were lost with the power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _say(message: str) -> None:
    print(f"rlhf: {message}", file=sys.stderr, flush=True)
