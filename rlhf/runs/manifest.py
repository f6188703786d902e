"""Folders that are either whole or not there: written aside, fsynced, sealed with a manifest, renamed.

`kill -9` at any point leaves the old folder, the new one or, for a moment while one takes the other's place, neither under
that name; never a half. A flipped bit or a missing file is found on reading, by size and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "manifest.json"
TEMPORARY = ".tmp-"


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder to write into; when the block ends it is sealed and takes the place of `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{TEMPORARY}{target.name}-{os.getpid()}"
    for leftover in target.parent.glob(f"{TEMPORARY}{target.name}-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        _seal(temporary)
        if target.exists():  # a rename cannot replace a folder that holds files
            aside = target.parent / f"{TEMPORARY}{target.name}-old"
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
            temporary.rename(target)
            shutil.rmtree(aside)
        else:
            temporary.rename(target)
        _fsync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or leave the old one: readers never see half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def problems(folder: Path) -> list[str]:
    """What is wrong with a sealed folder; nothing where it is whole."""
    try:
        files = json.loads((folder / NAME).read_text())["files"]
    except FileNotFoundError:
        return [f"{NAME} is missing: it was never finished"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        return [f"{NAME} cannot be read: {error}"]
    found = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != expected["bytes"]:
            found.append(f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}")
        elif sha256(path) != expected["sha256"]:
            found.append(f"{name} is damaged: its SHA-256 differs")
    return found


def names(folder: Path) -> list[str]:
    """The files of a sealed folder, without the manifest itself."""
    return list(json.loads((folder / NAME).read_text())["files"])


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for path in files:
        _fsync(path)
    entries = {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    manifest = folder / NAME
    manifest.write_text(json.dumps({"files": entries}, indent=1) + "\n")
    for path in [manifest, *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
