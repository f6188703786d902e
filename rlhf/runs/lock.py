"""One writer for each run folder: a second run in the same `output_dir` is refused, and told who writes there.

The lock is the operating system's own (flock), so it ends with its process, also after `kill -9`. Only rank 0 of a
launch takes it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf.errors import RecipeError

LOCK = ".lock"
HOLDER = ".lock.json"  # apart from the lock: filelock empties that file at every attempt


class FolderLock:
    """The right to write into a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK, timeout=0)

    def acquire(self) -> None:
        """Take the lock. Raises RecipeError, which names the holder, where another process has it."""
        try:
            self._lock.acquire()
        except Timeout:
            raise RecipeError(
                f"output_dir: {self.folder} is being written by another run ({self._holder()}); "
                "wait until it ends, or set another output_dir"
            ) from None
        about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        }
        (self.folder / HOLDER).write_text(json.dumps(about) + "\n", encoding="utf-8")

    def release(self) -> None:
        """Give the lock back; nothing happens where it was not taken."""
        if self._lock.is_locked:
            (self.folder / HOLDER).unlink(missing_ok=True)
            self._lock.release()

    def _holder(self) -> str:
        try:
            about = json.loads((self.folder / HOLDER).read_text(encoding="utf-8"))
            return f"process {about['pid']} on {about['host']}, started {about['started']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "a process that has only just started"
