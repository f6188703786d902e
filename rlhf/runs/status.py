"""`<output_dir>/status.json`: whether a run is running, done, failed or interrupted, for launchers and `rlhf run`.

Wraps every method's entry point. Written whole or not at all (a temporary file, then a rename), by rank 0 alone.
Besides the recipe's digest it records which runs this one read from and when those had finished, so that `rlhf run` can
tell a stage whose inputs were made anew from one that is still good.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlhf.errors import RecipeError
from rlhf.recipe.loader import digest, dump
from rlhf.recipe.schema import AnyRecipe
from rlhf.recipe.walk import sections, texts
from rlhf.runs.failure import explain, is_main_process
from rlhf.runs.identity import of_callable, of_folder
from rlhf.runs.lock import FolderLock
from rlhf.runs.manifest import NAME as MANIFEST
from rlhf.runs.manifest import write_atomically


class Status:
    """Context manager around one run: `with Status(recipe): ...`."""

    def __init__(self, recipe: AnyRecipe) -> None:
        self.recipe = recipe
        self.folder = Path(recipe.output_dir)
        self.record: dict[str, Any] = {}
        self.lock = FolderLock(self.folder)

    def __enter__(self) -> Self:
        self.started = time.perf_counter()
        self.record = {
            "state": "running",
            "method": self.recipe.method,
            "exit_code": None,
            "error": None,
            "recipe_sha256": digest(self.recipe),
            "started_at": _now(),
            "finished_at": None,
            "inputs": inputs(self.recipe),
        }
        if is_main_process():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.lock.acquire()
                write_atomically(self.folder / "recipe.yaml", dump(self.recipe))
            except (FileExistsError, NotADirectoryError, PermissionError) as error:
                raise RecipeError(f"output_dir: {self.folder} cannot be written: {error.strerror}") from error
            self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.record.update(state="done", exit_code=0)
        else:
            failure = explain(error)
            state = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
            self.record.update(state=state, exit_code=failure.exit_code, error=failure.message)
        seconds = round(time.perf_counter() - self.started, 3)
        self.record.update(finished_at=_now(), wall_seconds=seconds, peak_rss_mib=peak_rss_mib())
        if is_main_process():
            try:
                self._write()
            except OSError:
                if error is None:  # a full disk must not hide the error that filled it
                    raise
            finally:
                self.lock.release()

    def _write(self) -> None:
        write_atomically(self.folder / "status.json", json.dumps(self.record, indent=2, ensure_ascii=False) + "\n")


def read_status(folder: str | Path) -> dict[str, Any] | None:
    """What status.json in `folder` says; None where there is none, or none that can be read."""
    try:
        status = json.loads((Path(folder) / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return status if isinstance(status, dict) else None


def inputs(recipe: AnyRecipe) -> dict[str, str | None]:
    """What a recipe reads, and a mark of what that is now: a training run by its model's content, another run by when it
    finished, a function by its source.
    """
    own = os.path.normpath(recipe.output_dir)
    found: dict[str, str | None] = {}
    for text in texts(recipe):
        for folder in _folders(text):
            status = read_status(folder) if folder != own else None
            if status is not None:
                final = Path(folder) / "final"
                found[folder] = of_folder(final) if (final / MANIFEST).is_file() else status.get("finished_at")
    for _, section in sections(recipe):
        spec = getattr(section, "callable", None)
        if isinstance(spec, str):
            found[spec] = of_callable(spec)
    return dict(sorted(found.items()))


def peak_rss_mib() -> float:
    """The most memory that this process has held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _folders(text: str) -> list[str]:
    """The folder that a text may name, and the ones around it: `out/sft/final` lies in the run `out/sft`."""
    if len(text) > 1024 or "\n" in text or "\0" in text:
        return []
    path = Path(os.path.normpath(text))
    return [str(folder) for folder in (path, *list(path.parents)[:4]) if str(folder) not in (".", "/")]


def _now() -> str:
    return datetime.now(UTC).isoformat()
